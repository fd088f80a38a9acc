"""Small values that methods, generators and runs hand to one another."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

from jaxtyping import Shaped, UInt8
from numpy import ndarray
from torch import Tensor

from dpdm.privacy import Earlier
from dpdm.privacy.diagnostics import Diagnostics
from dpdm.types import InputError

Sizes = Mapping[str, tuple[int, ...]]
"""The shape of each tensor of a generator, as a file has them."""

Read = Callable[..., Shaped[Tensor, "..."]]
"""Returns a tensor of a file by its name, or those of its rows that a slice asks for."""


class ImageFacts(NamedTuple):
    """The declared facts of a data set that a generator needs."""

    shape: tuple[int, int, int]
    class_names: tuple[str, ...]

    @property
    def num_classes(self) -> int:
        """How many classes there are; 0 without labels."""
        return len(self.class_names)


class Budget(NamedTuple):
    """What a claim may cost, and what a person says of its steps: all that a method's plan depends on.

    `steps` and `expected_batch_size` are None where nobody said anything of them.
    """

    epsilon: float
    delta: float
    dataset_size: int
    steps: int | None = None
    expected_batch_size: int | None = None
    max_grad_norm: float = 1.0

    @property
    def batch_size(self) -> int:
        """E: what was given, or a sixteenth of the size, from 64 to 2048, and never more than there are."""
        given = self.expected_batch_size
        return min(self.dataset_size, max(64, min(2048, self.dataset_size // 16))) if given is None else given

    def require_no_steps(self, kind: str) -> None:
        """Raise InputError if steps are asked of a method that takes none."""
        if self.steps or self.expected_batch_size is not None or self.max_grad_norm != 1:
            raise InputError(
                f"the method {kind} takes no steps: leave out privacy.steps, privacy.expected_batch_size and "
                "privacy.max_grad_norm"
            )


class Progress(NamedTuple):
    """One step taken, or for a method without steps one noisy sum made. `diagnostics` are secret, all else is public.

    `epsilon` is an upper bound for what is made so far: the value at the next of twenty points of the plan. None for a
    run that is kept in memory, and for a method without steps.
    """

    steps_spent: int
    steps: int
    updates: int
    epsilon: float | None
    diagnostics: Diagnostics | None


class PublicPart(NamedTuple):
    """Something public that a release was made with: the name a person gave it, its SHA-256, its number of images.

    That it is public is declared: no file can show it, and no claim protects it. What is no set of images has none.
    `sources` are the sets that images were joined from, or are a part of. Images `drawn` from a release are not
    declared to be public: the plan counts what that release cost, and `sources` are what it does not protect.
    """

    name: str
    sha256: str
    images: int = 0
    drawn: bool = False
    sources: tuple["PublicPart", ...] = ()


class PublicStart(NamedTuple):
    """A network that was trained on public images (`dpdm pretrain`).

    `sha256` is that of the weights, `classes` are those that it knows, if it does, `shape` and `preconditioning` what
    it is for. `known` has each set of images that it was trained on: its name and their digests, (number, ways, 32), by
    which the same images are known again. `earlier` is what a release cost from which these images were drawn. `codec`
    is the SHA-256 of the codec in whose latents the network was trained, if it was. `settings` are those of the
    preconditioning beside its kind, and `label_dropout` is how often it saw images without their label.
    """

    weights: Mapping[str, Tensor]
    sha256: str
    classes: tuple[str, ...]
    preconditioning: str
    shape: tuple[int, ...]
    part: PublicPart
    known: tuple[tuple[str, UInt8[ndarray, "images ways 32"]], ...]
    earlier: tuple[Earlier, ...] = ()
    codec: str = ""
    settings: Mapping[str, object] = MappingProxyType({})
    label_dropout: float = 0.1
