"""Two defences without DP, to be measured beside it: no claim follows from either.

Both compare generated images with private ones, at every draw or now and then in training. So what they do depends on
private images, no noise hides it, and nothing made by them may enter a release: no command has them. They answer one
attack each, the one that they are built on. Others find what they leave.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple, TypeVar

import numpy as np

from dpdm.audit.membership import judge
from dpdm.audit.memorisation import near_samples, nearness
from dpdm.types import Images, InputError, Labels, require_counts, require_positive

T = TypeVar("T")

Draw = Callable[[Labels, int], Images]
"""Maps labels and a seed to images."""

_UNLIKELY = 0.001  # p-value: that so many samples are nearer to training images by chance
_ANY_DELTA = 1e-5  # for lower bounds on ε, which nobody asks for here


class Leakage(NamedTuple):
    """What samples tell, to somebody who has as many images that were not trained on.

    Args:
        training: How many training images come out again (`Extracted`).
        held_out: How many held-out ones do, by chance.
        auc: Of telling training images from held-out ones by how near samples come, or by how far they stay away,
            whichever is better: 0.5 is guessing.
    """

    training: int
    held_out: int
    auc: float


def leakage(samples: Images, training: Images, held_out: Images) -> Leakage:
    """Return what `samples` tell of `training` images, beside `held_out` ones of the same population."""
    extracted = nearness(samples, training, held_out).extracted
    assert extracted is not None
    size = min(len(training), len(held_out))
    scores = near_samples(samples, np.concatenate([training[:size], held_out[:size]]))
    auc = judge(scores, np.arange(2 * size) < size, delta=_ANY_DELTA).auc
    return Leakage(extracted.training, extracted.held_out, max(auc, 1 - auc))


def draw_away(draw: Draw, labels: Labels, training: Images, *, below: float, rounds: int = 50) -> Images:
    """Return images that `draw` makes, each drawn again until it is not nearer than `below` to a training image.

    What it cannot do: many samples leave a hole around each training image, and none around others, which tells
    members as surely as a copy does. It hides nothing of weights that are published. And whoever can tell that an
    image was drawn again has asked the training set about it.

    Args:
        draw: Makes images.
        labels: Their classes.
        training: Private images.
        below: A distance (root mean square of levels from 0 to 1), > 0.
        rounds: How often the same place is drawn at most.

    Raises:
        InputError: Images are still too near after so many rounds: the generator knows little else.

    Source:
        After CPSample (Kazdan et al. 2024), which steers samples away by a classifier; here they are drawn again.
    """
    require_positive(below=below)
    require_counts(rounds=rounds)
    made = draw(labels, 0)
    near = np.flatnonzero(-near_samples(training, made) < below)
    for seed in range(1, rounds):
        if not len(near):
            return made
        made[near] = draw(labels[near], seed)
        near = near[-near_samples(training, made[near]) < below]
    if len(near):
        raise InputError(
            f"{len(near)} of {len(made)} images are near a training image after {rounds} draws: draw with a smaller "
            "distance, or from a generator that copies less"
        )
    return made


def stop_before_copies(
    states: Iterable[tuple[T, Images]], training: Images, held_out: Images
) -> tuple[T, Images] | None:
    """Return the last of a training's states before its samples are nearer to training than to held-out images.

    What it cannot do: where samples do not yet show a copy, weights can tell members already, as losses differ long
    before. When it stops depends on private images: one more may move it.

    Args:
        states: Each with samples of it, in the order of training. None is asked for after the first one that copies.
        training: Private images.
        held_out: Others of the same population.

    Returns:
        None if the first one copies already.
    """
    last = None
    for state in states:
        nearer = nearness(state[1], training, held_out).nearer_to_training
        assert nearer is not None
        part, _, _, p_value = nearer
        if part > 0.5 and p_value < _UNLIKELY:
            return last
        last = state
    return last
