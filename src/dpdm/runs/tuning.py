"""A search among settings at a stated price: a random number of runs, of which the best alone is released.

Everything about the search but its best run stays in `private/`: the others, their scores, and how many there were.
"""

import itertools
import math
import os
import secrets
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from jaxtyping import Bool
from numpy import ndarray
from torch import nn

from dpdm.config import Config, Privacy, decode_plan, encode, encode_config, require_same_unit
from dpdm.data import ImageDataset
from dpdm.evaluation import train_classifier
from dpdm.files import held, is_first_of_its_folders, read_json, write_json
from dpdm.ledger import Ledger, Records, RunIdentity, counted
from dpdm.methods import Budget
from dpdm.methods.embedding import by_itself
from dpdm.privacy import AnyPlan, FullSum, GaussianRelease, Plan
from dpdm.privacy.accounting import epsilon
from dpdm.privacy.figures import figures_of, keep, kept_as
from dpdm.privacy.search import Search
from dpdm.privacy.sums import votes
from dpdm.runs.kept import keep_rows
from dpdm.runs.public import taking_part_of
from dpdm.runs.release import Release
from dpdm.runs.run import RunLost
from dpdm.runs.start import open_starts
from dpdm.runs.trainer import Trainer
from dpdm.types import InputError, images_to_tensor

NUM_IMAGES = 10_000
"""Synthetic images that the classifier of a score is trained on."""
_SCORE = "right answers"  # what a plan calls the count that runs are compared by


class Cost(NamedTuple):
    """What a search costs: one run alone, the best of all, and what releasing the mean number of runs would."""

    of_one: float
    of_best: float
    of_all: float


@dataclass(frozen=True, kw_only=True)
class Tuner:
    """Draws settings at random among candidates, trains each, and releases the best.

    Args:
        candidates: Settings that differ in nothing that a run's plan depends on.
        search: How many runs there are, and whether their score is private.
        reference: Public images for the score: the accuracy on them of a CNN that was trained on synthetic images.
            Private images that are among them take no part (`blank_equal`), and `private/blanked.json` lists these.
            None takes the private ones, and the score's own noise is part of the price.
        run: Folder of the search; the same again goes on with it.
        ledger: Where all of it is reserved before the first run; None counts nothing.

    Guarantees:
        * The claim of the release covers all runs, whichever was the best.
        * The number of runs is drawn once, from the operating system, and never published.

    Source:
        Papernot & Steinke 2022.
    """

    candidates: Sequence[Config]
    search: Search
    reference: ImageDataset | None = None
    run: Path
    ledger: Ledger | None

    def __post_init__(self) -> None:
        private = self.reference is None
        if private != (self.search.score_noise_multiplier is not None):
            raise InputError("give public images for the score, or noise for a score on the private ones")

    def plan(self, data: ImageDataset) -> Plan:
        """Return the plan that all candidates share: that of one run, with the claim of the search.

        Raises:
            InputError: The candidates' plans or images differ, or they claim nothing; or images are in groups and the
                score is private.
        """
        first = self.candidates[0]
        for config in self.candidates[1:]:
            same = (config.privacy, config.data, config.public) == (first.privacy, first.data, first.public)
            same = same and config.method.start_folders == first.method.start_folders
            same = same and config.method.networks == first.method.networks
            if not same or _planned(config) != _planned(first):
                raise InputError(
                    "candidates differ in [privacy], [data], [public], start.sources or what their method releases or "
                    "sees features by: the price or the claim of a run depends on these, so let candidates differ in "
                    "other settings"
                )
        if not isinstance(first.privacy, Privacy):
            raise InputError("privacy.kind = non-private claims nothing: a search has no price there")
        if data.groups is not None and self.reference is None:
            raise InputError(
                f"{data.name} has groups of images, of which one can change many right answers, and the noise on their "
                "count covers one: give --reference with public images"
            )
        brought = {"earlier": first.earlier, "search": self.search}
        plan = first.privacy.plan(first.method, lambda: data.num_units, unit=first.data.unit, **brought)  # type: ignore[arg-type]
        require_same_unit(plan, data)
        return plan

    def cost(self, plan: Plan) -> Cost:
        """Return what a search of this plan costs."""
        before = [event for each in plan.earlier for event in each.events()]
        one = replace(plan, search=None, earlier=()).events()
        noise = self.search.score_noise_multiplier
        one += [] if noise is None else [GaussianRelease(noise_multiplier=noise)]
        alone, many = (
            epsilon(before + one * times, delta=plan.delta, relation=plan.relation, accountant="rdp")
            for times in (1, round(self.search.mean))
        )
        return Cost(alone, plan.epsilon(), many)

    def fit(self, data: ImageDataset, on_run: Callable[[int, int, Trainer, ImageDataset], Release]) -> Release:
        """Search, from where an interrupted search stopped, and return the best run's release.

        Args:
            data: The private images, with labels.
            on_run: Called with the number of a run, how many there are, its trainer, and the images on which it must
                run this to the end: those with blanks, and no others.
        """
        if data.labels is None or data.num_classes < 2:
            raise InputError(f"{data.name} has no labels of two classes: the classifier of a score needs them")
        plan = self._as_begun(self.plan(data))
        if self.reference is not None and (
            self.reference.labels is None or self.reference.num_classes != data.num_classes
        ):
            raise InputError(
                f"{self.reference.name} must have labels of {data.num_classes} classes, as {data.name} has: the score "
                "is how many of them a classifier gets right"
            )
        starts = open_starts(self.candidates[0].method.start_folders)
        # The same code whether there are equal images or not: it must not show.
        data = taking_part_of(data, self.reference, starts)
        made_with: dict[str, Any] = {}
        for config in self.candidates:  # what cannot be trained must show before the whole price is spent
            trainer = self._trainer(config, data, plan, self.run)
            made_with = _made_with(trainer.rehearse(data), trainer, like=made_with)
        data = taking_part_of(data, trainer.public, ())  # so that no image of these is in a score either
        self._begin(plan, made_with)
        busy = f"{self.run} is in use: another process is searching; wait for it"
        with held(self.run / "private" / ".lock", otherwise=busy):
            return self._go_on(data, plan, self._begin(plan, made_with), on_run, trainer.public_records)

    def _go_on(
        self,
        data: ImageDataset,
        plan: Plan,
        state: dict[str, Any],
        on_run: Callable[[int, int, Trainer, ImageDataset], Release],
        public: Sequence[Records],
    ) -> Release:
        """Make the runs that are left, and release the best of all."""
        private = self.run / "private"
        if data.blank is not None:
            write_json(private / "blanked.json", {"records": np.flatnonzero(data.blank).tolist()})
        released = (self.run / "release").exists()
        if self.ledger is None and not released and RunIdentity.read(private) is not None:
            raise InputError(f"{self.run} began in a ledger: go on with it, by --ledger or DPDM_LEDGER")
        reservation = counted(
            self.ledger,
            plan,
            Records.of(data),
            public=public,
            run=self.run,
            begun=state["begun"],
            finished=len(state["scores"]) == len(state["choices"]),
            spent=lambda: None,  # a search costs its whole price once it has begun
            undo=lambda: shutil.rmtree(self.run),  # so that the folder is free for a search that fits
        )
        with reservation:
            for number in range(len(state["scores"]) + 1, len(state["choices"]) + 1):
                self._one_run(number, data, plan, state, on_run)
        if not (self.run / "release").exists():
            best = self._best(state["scores"])
            for path in (*best.iterdir(), best):  # when a run ended tells how many there were before it, at least
                os.utime(path, (state.get("at", 0), state.get("at", 0)))
            best.rename(self.run / "release")
        for folder in (private / "runs").glob("*/release"):  # whose claim holds for the best of them alone
            shutil.rmtree(folder)
        return Release.load(self.run)

    def _one_run(
        self,
        number: int,
        data: ImageDataset,
        plan: Plan,
        state: dict[str, Any],
        on_run: Callable[[int, int, Trainer, ImageDataset], Release],
    ) -> None:
        """Make one run of the search, and keep its score."""
        private = self.run / "private"
        state["begun"] = True
        write_json(private / "search.json", state)
        folder = private / "runs" / str(number)
        config = self.candidates[state["choices"][number - 1]]
        trainer = self._trainer(config, data, plan, folder)
        _made_with(trainer.rehearse(data), trainer, like=state["what"])
        try:
            release = on_run(number, len(state["choices"]), trainer, data)
            _made_with(release.settings, trainer, like=state["what"])
            score = self._score(release, data, plan, folder)
        except RunLost:  # in a crash, which says nothing of its images: the others go on without it
            score = None
        state["scores"].append(score)
        write_json(private / "search.json", state)

    def _trainer(self, config: Config, data: ImageDataset, plan: Plan, run: Path) -> Trainer:
        """Return the trainer of one run. The whole search is reserved, and its runs reserve nothing more."""
        return Trainer.from_config(config, data, run=run, plan=plan, reference=self.reference, ledger=lambda: None)

    def _best(self, scores: Sequence[float | None]) -> Path:
        """Return the release of the best score's run, the first of equals; one without a score if no run has one."""
        found = []
        for number, score in enumerate(scores, start=1):
            release = self.run / "private" / "runs" / str(number) / "release"
            if release.exists():
                found.append((-math.inf if score is None else score, -number, release))
        if not found:
            raise InputError(f"{self.run}: crashes took every run of this search, whose price is spent: begin another")
        return max(found)[2]

    def _as_begun(self, plan: Plan) -> Plan:
        """Return the plan that the search began with; else `plan`."""
        path = self.run / "private" / "search.json"
        kept: AnyPlan | None = None
        if path.exists():
            what: Any = read_json(path).get("what")
            try:
                began = decode_plan(what["plan"])
                kept = kept_as(plan, keep(began, figures_of(began)._replace(asked=what["epsilon"])) or began)
            except (InputError, LookupError, TypeError):  # what is wrong with it shows where all is compared
                return plan
        return plan if kept is None else cast(Plan, kept)

    def _begin(self, plan: Plan, made_with: dict[str, Any]) -> dict[str, Any]:
        """Return the state of the search: drawn, if there is none yet, and saved before anything is spent."""
        path = self.run / "private" / "search.json"
        candidates = [encode_config(config) for config in self.candidates]
        what = {"plan": encode(plan), "epsilon": figures_of(plan).asked, "candidates": candidates, **made_with}
        if path.exists():
            state = read_json(path)
            if state.get("what") != what:
                raise InputError(
                    f"{self.run} holds another search: choose another --run, or repeat its settings and data"
                )
            return state
        if not is_first_of_its_folders(path):
            raise InputError(f"{self.run} is not empty and holds no search that can go on: choose another --run folder")
        path.parent.mkdir(parents=True, mode=0o700, exist_ok=True)
        number = self.search.draw_num_runs(os.urandom)
        choices = [secrets.randbelow(len(candidates)) for _ in range(number)]
        state = {"what": what, "at": int(time.time()), "choices": choices, "scores": [], "begun": False}
        write_json(path, state)
        return state

    def _score(self, release: Release, data: ImageDataset, plan: Plan, folder: Path) -> float | None:
        """Return the accuracy on public images, or the noisy count of right answers on the private ones.

        None if a crash lost the count, which cannot be made again.
        """
        images, labels = release.sample(NUM_IMAGES, seed=0)
        right = _right_answers(train_classifier(images, labels, num_classes=data.num_classes), self.reference or data)
        noise = self.search.score_noise_multiplier
        if noise is None:
            return float(right.mean())
        of_score = Plan(
            dataset_size=plan.dataset_size,
            releases=(FullSum(name=_SCORE, noise_multiplier=noise),),
            delta=plan.delta,
            relation=plan.relation,
        )
        run = of_score.start(folder / "private" / "score.jsonl")
        try:
            if run.finished:
                return None
            count = votes([(torch.from_numpy(~right).long()[:, None], torch.from_numpy(data.weights))], bins=1)
            return float(run.release(_SCORE, count, num_records=len(data)).values)
        finally:
            run.close()


def _made_with(settings: dict[str, Any], trainer: Trainer, *, like: dict[str, Any]) -> dict[str, Any]:
    """Return what the claim of a run names, and the weights of its starts; refuse others than those of `like`."""
    found = {"public": settings["facts"]["public"], "starts": [start.sha256 for start in trainer.starts]}
    if any(value != like.get(key, value) for key, value in found.items()):
        raise InputError(
            "the runs of a search would be made with different public images, networks or starts, and its claim names "
            "one of each: give all candidates the same, and leave their files as they are until it ends"
        )
    return found


def _right_answers(classifier: nn.Module, data: ImageDataset) -> Bool[ndarray, " images"]:
    """Return whether a classifier of released images knows each image's class; it refuses none.

    Guarantees:
        * An answer depends on this image alone, to the bit: one image more or fewer changes their count by at most 1.
    """
    assert data.labels is not None
    logits = torch.inference_mode()(lambda images: classifier(images_to_tensor(images)))
    alone = by_itself(logits, data.images.shape[1:])
    rows = keep_rows(
        None,
        data.images,
        lambda images: alone(images).nan_to_num(0, 0, 0).argmax(1, keepdim=True).float(),
        made_by="the classifier",
        name="answers",
    )
    right: Bool[ndarray, " images"] = rows[:][:, 0] == data.labels
    return right


def _planned(config: Config) -> tuple[object, ...]:
    """Return what a method releases of any budget: two with the same have the same price."""
    return config.method.releases(Budget(1.0, 1e-5, 10**7, config.privacy.steps))


def combinations(texts: Sequence[str]) -> list[tuple[str, ...]]:
    """Return all combinations of `key=a,b,c` texts, as `key=value` overrides.

    Raises:
        InputError: A text is not of that form.
    """
    choices = []
    for text in texts:
        key, equals, values = text.partition("=")
        if not (equals and key and all(values.split(","))):
            raise InputError(f"--try takes key=value,value,... and not {text!r}")
        choices.append([f"{key}={value}" for value in values.split(",")])
    return list(itertools.product(*choices))
