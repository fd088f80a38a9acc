"""What a release tells of all private images together: how frequent each class, or each look, is among them.

No ε bounds this, and none is meant to: a share changes by 1/N with one image, and is what a generator is asked to
learn. Whoever finds it in the release has broken no claim. A share may itself be a secret, as that of the scans which
show a disease. If so, balance the classes before training, or do not publish.
"""

from dataclasses import replace
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float64
from numpy import ndarray

from dpdm.audit.opened import Opened
from dpdm.data import ImageDataset
from dpdm.evaluation import QUICK, nearest, train_classifier
from dpdm.methods import DenoisingGenerator
from dpdm.runs.release import Release
from dpdm.types import Images, InputError, images_to_tensor, tensor_to_images

NO_CLAIM: Final = "a statistic of all images, which no ε hides"
_LOOKS = 10
_ROUNDS = 100
_AT_ONCE = 250  # images
_TAUGHT = replace(QUICK, min_updates=200)


class Properties(NamedTuple):
    """Shares among the private images, as an attacker estimates them from a release, beside what they are.

    Args:
        names: Of classes, or of looks: groups of similar held-out images.
        estimated: The attacker's shares.
        true: Those of the private images.
        by: What the attacker goes by.
    """

    names: tuple[str, ...]
    estimated: tuple[float, ...]
    true: tuple[float, ...]
    by: str

    @property
    def error(self) -> float:
        """The part of images that would have to change their class for the estimate to be right."""
        return float(np.abs(np.subtract(self.estimated, self.true)).sum() / 2)

    def as_json(self) -> dict[str, Any]:
        """Return everything as one JSON object."""
        return {"what": NO_CLAIM, **self._asdict(), "error": self.error}


def properties_of(opened: Opened, generated: int) -> Properties | None:
    """Return what a run's release tells of its private images' shares; None if it tells nothing.

    The shares of classes are those that noisy sums have counted, where the generator has them. Else images drawn
    without label tell them, by a classifier of held-out images; and images without classes tell how frequent looks are.
    """
    release, data, held_out = opened.release, opened.private, opened.held_out
    if not data.num_classes:
        return None if held_out is None else _looks(release.sample(generated)[0], data.images, held_out.images)
    assert data.labels is not None
    true = np.bincount(data.labels, minlength=data.num_classes) / len(data.labels)
    said = "class shares that the run released"
    estimated = release.generator.class_shares
    if estimated is None:
        drawn = _without_label(release, generated)
        if drawn is None or held_out is None or held_out.class_names != data.class_names:
            return None
        try:
            estimated = tuple(estimate_shares(drawn, held_out).tolist())
        except InputError:  # too few held-out images, or all of one class: nothing to learn from
            return None
        said = f"{generated:,} images drawn without label, and a classifier of held-out images"
    return Properties(data.class_names, estimated, tuple(true.tolist()), said)


def estimate_shares(samples: Images, known: ImageDataset) -> Float64[ndarray, " classes"]:
    """Return the most likely shares of classes among `samples`, by a classifier that learns from `known` images.

    Its answers lean to the shares that it has learnt from: these are taken out, by expectation and maximisation.

    Raises:
        InputError: There is nothing that a classifier can learn from.

    Source:
        Saerens, Latinne & Decaestecker 2002 (Neural Computation 14), equation 2.3; Ganju et al. 2018 for the attack.
    """
    assert known.labels is not None
    classifier = train_classifier(known.images, known.labels, num_classes=known.num_classes, protocol=_TAUGHT)
    with torch.no_grad():
        logits = torch.cat([classifier(images_to_tensor(samples[part])) for part in _parts(len(samples))])
    before = np.bincount(known.labels, minlength=known.num_classes) / len(known.labels)
    answers = logits.double().softmax(1).numpy()
    shares, odds = before, np.divide(answers, before, out=np.zeros_like(answers), where=before > 0)
    for _ in range(_ROUNDS):
        each = odds * shares
        shares = (each / each.sum(1, keepdims=True)).mean(0)
    return shares


def _looks(samples: Images, images: Images, known: Images) -> Properties:
    """Return how frequent looks are: those of the nearest of a few groups that held-out images fall into."""
    from sklearn.cluster import KMeans

    number = min(_LOOKS, len(known))
    groups = KMeans(number, n_init=1, random_state=0).fit(_rows(known)).cluster_centers_
    centres = torch.from_numpy(groups).float()

    def shares(of: Images) -> tuple[float, ...]:
        found = torch.cat(
            [found[:, 0] for part in _parts(len(of)) for _, _, found in nearest(_rows(of[part]), centres, count=1)]
        )
        return tuple((torch.bincount(found, minlength=number) / len(of)).tolist())

    by = f"{len(samples):,} images, and groups of similar held-out ones"
    return Properties(tuple(f"look {number}" for number in range(number)), shares(samples), shares(images), by)


@torch.no_grad()
def _without_label(release: Release, number: int) -> Images | None:
    """Return images that a generator draws without label; None if it knows only classes."""
    generator = release.generator
    if not isinstance(generator, DenoisingGenerator) or generator.null_label is None:
        return None
    random = torch.Generator(generator.device).manual_seed(0)
    parts = []
    for part in _parts(number):
        labels = torch.full((len(range(number)[part]),), generator.null_label, device=generator.device)
        parts.append(tensor_to_images(generator.draw(labels, random=random)))
    return np.concatenate(parts)


def _parts(number: int) -> list[slice]:
    return [slice(start, start + _AT_ONCE) for start in range(0, number, _AT_ONCE)]


def _rows(images: Images) -> Float[torch.Tensor, "images numbers"]:
    return images_to_tensor(images).flatten(1)
