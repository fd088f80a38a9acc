"""`dpdm compare --methods`: each method trained on a benchmark and judged, in one command that goes on."""

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpdm.cli.fitting import fitted
from dpdm.cli.judging import Real, enter, features_of, judged
from dpdm.cli.options import METHODS, bound, fail, load_settings, require_found, require_method, show
from dpdm.cli.training import require_agreeing, require_public_there_for, require_readable, train_with_progress
from dpdm.terminal import duration, tell

if TYPE_CHECKING:
    from dpdm.config import Config
    from dpdm.data import ImageDataset
    from dpdm.evaluation import Features, Judge
    from dpdm.ledger import Ledger

_KEPT = "comparison.json"
_FOR_ALL = ("data.", "machine.", "privacy.")  # settings that mean the same for every method


@dataclass(frozen=True)
class Asked:
    """What a comparison is of, which stays the same when it goes on; another choice of methods may join."""

    dataset: str
    epsilon: float | None
    minutes: float | None
    public: str | None
    dataset_size: int | None
    settings: list[str]
    reference: str | None
    fit: str
    features: str | None
    images: int
    quick: bool
    seed: int

    @property
    def protocol(self) -> str:
        """How classifiers are trained (`PROTOCOLS`)."""
        return "quick" if self.quick else "paper"

    def config(self, method: str | None, *, public: str | None = None) -> "Config":
        """Return the settings of one method on these images."""
        return load_settings(self.dataset, self.epsilon, self.dataset_size, self.settings, method=method, public=public)


def compare_methods(
    asked: Asked, methods: str, folder: Path, ledger: str | None, *, markdown: bool, as_json: bool
) -> None:
    """Train and judge each of some methods, or of all, on images that are a benchmark."""
    names = _named(methods)
    _refuse(asked)
    base, configs = asked.config(None), _configs(asked, names)
    from dpdm.evaluation import Judge
    from dpdm.files import held
    from dpdm.ledger import Ledger, Records
    from dpdm.privacy import Plan
    from dpdm.privacy.processes import Processes
    from dpdm.report import write_comparison
    from dpdm.runs.benchmark import counted_in

    book, alone = Ledger.default(ledger, tell=tell), Processes()
    if book is None:
        fail("a benchmark is a property of images in a ledger: name one by --ledger")
    require_readable(book, alone)
    data = base.data.open()
    plan = base.plan(lambda: data.num_units)
    if not isinstance(plan, Plan):
        fail("privacy.kind = non-private claims nothing: leave it out")
    possible = {name: config for name, config in configs.items() if not isinstance(config, str)}
    if not data.public:
        _refuse_private(asked, list(possible.values()), data)
    if not possible:
        fail("; ".join(f"{name} {config}" for name, config in configs.items()))
    real = Real(asked.reference or _test_of(base.data.source), asked.fit, base.data.group)
    test = real.like(data, data.name)
    book.require_public([Records.of(test)])  # since everyone sees the scores
    features = features_of(_features(asked.features), None, [test], asked.images)
    rows = _Rows(folder, asked)
    judge = Judge(features=features, protocol=asked.protocol, at_most=asked.images, seed=asked.seed, processes=alone)
    with held(folder / ".lock", otherwise=f"{folder} is in use: another process compares; wait for it"):
        for name in rows.released():
            counted_in(book, folder / name)
        book.declare_benchmark(Records.of(data), delta=plan.delta, relation=plan.relation, unit=plan.one_unit)
        for number, (name, config) in enumerate(configs.items(), 1):
            if isinstance(config, str):
                rows.put(name, refused=config)
            elif name not in rows.released():
                tell(f"{name}, method {number} of {len(names)}")
                _enter_row(rows, name, config, asked, data, book, judge, real)
        facts = _facts(rows, names, book, data, real.source, features)
        write_comparison(facts, folder / "comparison.html")
    if not any("scores" in row for row in facts["rows"]):
        fail("; ".join(f"{row['method']}: {row['refused']}" for row in facts["rows"]))
    show(facts, _lines(facts, folder, markdown=markdown), as_json)


def _refuse(asked: Asked) -> None:
    """Raise InputError for what no comparison can be made of, before the heavy imports."""
    if os.environ.get("WORLD_SIZE", "1").strip() not in ("", "1"):
        fail("dpdm compare --methods is one process: start it without torchrun")
    for text in asked.settings:
        if not text.startswith(_FOR_ALL):
            fail(f"--set {text} is not a setting of all methods: a comparison takes data., machine. and privacy. only")
    from dpdm.types import require_positive

    require_positive(minutes=1.0 if asked.minutes is None else asked.minutes)
    require_found(asked.reference)


def _configs(asked: Asked, names: Sequence[str]) -> "dict[str, Config | str]":
    """Return the settings of each method, or why it cannot take part."""
    from dpdm.config import is_release
    from dpdm.data.public import require_public_there
    from dpdm.types import InputError

    if asked.public is not None and not is_release(asked.public):
        require_public_there(asked.public)
    found: dict[str, Config | str] = {}
    for name in names:
        try:
            config = asked.config(name)
            if config.method.starts_from_images and asked.public is None:
                found[name] = "needs public images: --public"
                continue
            if config.method.starts_from_images:
                config = asked.config(name, public=asked.public)
            require_public_there_for(config)
            found[name] = config
        except InputError as error:
            found[name] = str(error)
    return found


def _named(methods: str) -> list[str]:
    """Return the methods that a list names, in its order."""
    known = [line.partition(":")[0] for line in METHODS]
    names = known if methods == "all" else list(dict.fromkeys(name.strip() for name in methods.split(",")))
    for name in names:
        require_method(name)
    return names


def _test_of(source: str) -> str:
    """Return the test part of a built-in data set."""
    from dpdm.data import is_built_in

    name = source.partition(":")[0]
    if not is_built_in(name):
        fail(f"{source} has no test images of its own: name real ones by --reference")
    return f"{name}:test"


def _features(named: str | None) -> str | None:
    """Return the features that distances are computed on: those of ImageNet, where the extra is there."""
    there = find_spec("efficientnet_lite_pytorch") is not None and find_spec("torchmetrics") is not None
    return named or ("efficientnet-lite0" if there else None)


def _refuse_private(asked: Asked, configs: "Sequence[Config]", data: "ImageDataset") -> None:
    """Say what a comparison of private images costs, and what to do."""
    from dpdm.privacy import Plan
    from dpdm.privacy.accounting import epsilon

    plans = [config.plan(lambda: data.num_units) for config in configs]
    events = [event for plan in plans if isinstance(plan, Plan) for event in plan.events()]
    cost = epsilon(events, delta=plans[0].delta or 1e-5, relation=plans[0].relation) if plans else 0.0
    fail(
        f"{data.name} is private, and a comparison is for benchmarks, which are public: {len(plans)} methods at this ε "
        f"cost ε = {bound(cost)} together, and no ε covers a choice by scores on real images; to search at a stated "
        f"price: dpdm tune {asked.dataset} --run search --method NAME --try key=value,value --reference PUBLIC"
    )


class _Rows:
    """What is known of each method, kept in the comparison's folder after each step."""

    def __init__(self, folder: Path, asked: Asked) -> None:
        from dpdm.files import read_json

        self.folder, self.asked = folder, asdict(asked)
        kept: dict[str, Any] = {"asked": self.asked, "rows": {}}
        if (folder / _KEPT).exists():
            kept = read_json(folder / _KEPT)
        if other := [key for key, value in self.asked.items() if kept["asked"].get(key) != value]:
            there = kept["asked"].get(other[0])
            fail(f"{folder} holds another comparison ({other[0]}: {there}): choose another folder by --run")
        self._rows: dict[str, dict[str, Any]] = kept["rows"]
        folder.mkdir(parents=True, exist_ok=True)

    def of(self, name: str) -> dict[str, Any]:
        """Return what is known of a method."""
        return self._rows.get(name, {})

    def released(self) -> list[str]:
        """Return the methods that are judged, and have their release."""
        there = (name for name, row in self._rows.items() if "scores" in row)
        return [name for name in there if (self.folder / name / "release" / "privacy.json").exists()]

    def put(self, name: str, **known: object) -> None:
        """Add to what is known of a method, and write it down."""
        from dpdm.files import write_json

        self._rows[name] = self.of(name) | known
        write_json(self.folder / _KEPT, {"asked": self.asked, "rows": self._rows})


def _enter_row(
    rows: _Rows,
    name: str,
    config: "Config",
    asked: Asked,
    data: "ImageDataset",
    book: "Ledger",
    judge: "Judge",
    real: Real,
) -> None:
    """Train one method and judge it; what it cannot do is said in its row, and the others go on."""
    from dpdm.privacy.processes import Processes
    from dpdm.types import InputError

    started, before = time.monotonic(), rows.of(name).get("seconds", 0.0)
    folder = rows.folder / name
    try:
        try:
            memory = _trained(config, asked.minutes, data, book, folder)
        finally:  # a comparison that is stopped has taken this time, too
            rows.put(name, seconds=before + time.monotonic() - started)
        remarks = list[str]()
        entrant = enter(str(folder), real, num_classes=None, seed=asked.seed, remarks=remarks, count=asked.images)
        made = entrant.images(asked.images, asked.seed, Processes())
        card = judged(judge, made, entrant.test, name)
        rows.put(name, memory=memory, scores=card.as_json(), cells=card.cells(), refused=None)
    except InputError as error:
        rows.put(name, refused=str(error))


def _trained(config: "Config", minutes: float | None, data: "ImageDataset", book: "Ledger", folder: Path) -> int | None:
    """Plan and train one method; return the most memory that it took, where the system tells."""
    from dpdm.config import is_timed
    from dpdm.privacy.processes import Processes
    from dpdm.runs import Trainer
    from dpdm.runs.hardware import choose_device
    from dpdm.runs.memory import peak_memory

    with peak_memory(choose_device(config.machine.device)) as most:
        if minutes is not None and is_timed(config.method):
            config = fitted(config, folder, minutes, Processes())
        require_agreeing(config, data)
        trainer = Trainer.from_config(config, data, run=folder, ledger=lambda: book)
        train_with_progress(trainer, data, Processes())
        return most()


def _facts(
    rows: _Rows, names: Iterable[str], book: "Ledger", data: "ImageDataset", reference: str, features: "Features | None"
) -> dict[str, Any]:
    """Return what a comparison has found, for machines, once each release says what all of them cost."""
    from dpdm.runs import verify_release
    from dpdm.runs.benchmark import Benchmark, stamp_again

    account = book.account(data.name)
    for name in rows.released():  # of earlier choices of methods, too
        stamp_again(rows.folder / name, book)
    found = []
    for name in names:
        row = {"method": name, **rows.of(name)}
        if "scores" in row:
            verified = verify_release(rows.folder / name)
            public = [part.name for part in verified.public]
            row |= {"claim": verified.statement, "epsilon": verified.epsilon, "delta": account.delta, "public": public}
        found.append(row)
    together = Benchmark.of(account)
    assert together is not None
    return {
        "dataset": data.name,
        "reference": reference,
        "benchmark": together._asdict(),
        "features": None if features is None else features.name,
        "asked": rows.asked,
        "rows": found,
        "covered_by_epsilon": False,
    }


def _lines(facts: dict[str, Any], folder: Path, *, markdown: bool) -> Iterator[str]:
    """Yield the table, and what to know of its numbers."""
    headings = max((list(row["cells"]) for row in facts["rows"] if "cells" in row), key=len)
    table = [["method", *headings, "time", "memory", "claim", "public data"]]
    for row in facts["rows"]:
        if "scores" not in row:
            table.append([row["method"], *[""] * (len(headings) + 2), row["refused"], ""])
            continue
        memory = "" if row["memory"] is None else f"{row['memory'] / 2**30:.1f} GiB"
        claim = f"({bound(row['epsilon'])}, {row['delta']:g})"
        cells = [row["cells"].get(heading, "") for heading in headings]
        public = ", ".join(row["public"]) or "none"
        table.append([row["method"], *cells, duration(row["seconds"]), memory, claim, public])
    if markdown:
        yield from (f"| {' | '.join(line)} |" for line in (table[0], ["---"] * len(table[0]), *table[1:]))
    else:
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        for line in table:
            yield "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
    together = facts["benchmark"]
    yield ""
    yield (
        f"BENCHMARK: {together['runs']} runs on {facts['dataset']}, ε ≤ {bound(together['epsilon'])} together at "
        f"δ = {together['delta']:g}; each release says so. Accuracies in %, on {facts['reference']}: if "
        "that is private, so are they."
    )
    yield f"the page: {folder / 'comparison.html'}"
