"""`[start]`: a network that was trained on public images, around noise of the kind that the private prior has.

Nothing private is spent on the network. Private images say, by one noisy sum, how far to follow it at each noise level.
"""

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Shaped
from torch import Tensor, nn

from dpdm.methods.trained import Trained
from dpdm.methods.values import Budget, ImageFacts, PublicStart
from dpdm.networks.layers import ConditionEmbedding
from dpdm.privacy import FullSum, gaussian_mu
from dpdm.types import InputError, require_at_most, require_name

CHOICE, GAINS, MATRICES = "choice of a start", "gains", "choice of matrices"
"""What the sums are called that tell which public network to begin with, how far to follow it, and what trains."""

_SHA256 = re.compile("[0-9a-f]{64}", re.ASCII)
_MOST_STARTS = 8
_OTHER_KINDS = {"codec": "--set codec.source=...", "classifier": "--method statistics --start ..."}


@dataclass(frozen=True, kw_only=True)
class Start:
    """`[start]`: public weights to begin with.

    Args:
        sources: The folders that `dpdm pretrain` made. A release keeps only their names. Private images choose one of
            several, by one vote each.
        gains: Whether private images decide how far to follow the public network at each noise level. Without gains the
            run follows it wholly.
        share: Part of the budget for gains and choices together, as a share of μ² (`gaussian_mu`).
        sha256: Digest of the weights of each (default: the folders'). A release stores them.
        trains: Which parameters the private steps train (`Trained`): `all`, `norms` (and biases), `attention`, `last`
            (the output half), or names with `*`, joined by commas. Or `low-rank:R`, a change of rank R to each matrix.
            Or `chosen:K`, the K matrices that private images choose. Or both `low-rank:R` and `chosen:K`, joined by a
            comma.

    Example:
        >>> Diffusion(start=Start(sources=("starts/fonts",))).start_folders
        ('starts/fonts',)
    """

    sources: tuple[str, ...]
    gains: bool = True
    share: float = 0.02
    trains: str = "all"
    sha256: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.sources:
            raise InputError("start.sources is empty: name a folder that dpdm pretrain made")
        if twice := [source for source in self.sources if self.sources.count(source) > 1]:
            raise InputError(f"start.sources names {twice[0] or 'an empty folder'} twice: name each folder once")
        require_at_most(_MOST_STARTS, starts=len(self.sources))
        for source in self.sources:
            if not source:
                raise InputError("start.sources holds an empty name: name a folder that dpdm pretrain made")
            require_name(source, "the start (start.sources)")
        if self.sha256 and len(self.sha256) != len(self.sources):
            raise InputError("start.sha256 must have one digest for each of start.sources")
        if not all(map(_SHA256.fullmatch, self.sha256)):
            raise InputError("start.sha256 must be 64 hexadecimal digits")
        _ = self.trained
        if not 0 < self.share < 1:
            raise InputError(f"share must be above 0 and below 1, not {self.share}")
        if not self.private and self.share != type(self).share:
            raise InputError("start.share is for gains and choices, and there are none: leave it out")

    @property
    def trained(self) -> Trained:
        """The value of `trains`, parsed."""
        return Trained(self.trains)

    @property
    def private(self) -> tuple[str, ...]:
        """The noisy sums of private images about it: the choice of a start, the gains, and what trains."""
        asked = {CHOICE: len(self.sources) > 1, GAINS: self.gains, MATRICES: self.trained.chosen is not None}
        return tuple(name for name, wanted in asked.items() if wanted)

    def planned(self, budget: Budget) -> tuple[FullSum, ...]:
        """Return the sums of `private` as entries of a plan, with equal shares."""
        whole = gaussian_mu(epsilon=budget.epsilon, delta=budget.delta)
        each = self.share / max(1, len(self.private))
        return tuple(FullSum(name=name, noise_multiplier=1 / (whole * math.sqrt(each))) for name in self.private)

    def said(self, starts: Sequence[PublicStart]) -> "Start":
        """Return the start in the form that a release stores: the folders' names and the digests of the weights.

        Raises:
            InputError: The weights have other digests than `sha256`, or two folders have one name.
        """
        digests = tuple(start.sha256 for start in starts) or self.sha256
        if self.sha256 not in ((), digests):
            raise InputError(
                f"{', '.join(self.sources)}: another start than the one that the settings name (start.sha256)"
            )
        names = tuple(Path(source).expanduser().resolve().name or "start" for source in self.sources)
        if len({*names}) < len(names):
            raise InputError(f"two starts are called alike ({', '.join(names)}), as the claim would: rename one")
        return replace(self, sources=names, sha256=digests)

    def require_same(self, weights: Mapping[str, Shaped[Tensor, "..."]], where: str) -> None:
        """Raise InputError unless the weights have the digests that a release names.

        Without this check, weights beside a plan without steps could be anything, even private images.
        """
        if weights_digest(weights) not in self.sha256:
            raise InputError(f"{where} holds another network than a public one that config.toml names")


def weights_digest(weights: Mapping[str, Shaped[Tensor, "..."]]) -> str:
    """Return the SHA-256 of tensors with their names, types and shapes."""
    whole = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        whole.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        whole.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return whole.hexdigest()


def require_start(start: PublicStart, preconditioning: object, *, codec: str, guided: bool) -> None:
    """Raise InputError unless a start is for this preconditioning, for latents of this codec, and for guidance, if any.

    A network of another one takes other numbers for the same image, and whatever is drawn by it is worth nothing.
    """
    if use := _OTHER_KINDS.get(start.preconditioning):
        raise InputError(
            f"the start of {start.part.name} is a {start.preconditioning}, and no network that draws images: name it "
            f"by {use}"
        )
    made_for = {"kind": start.preconditioning, **start.settings}
    for name, value in made_for.items():
        if (here := getattr(preconditioning, name, value)) != value:
            raise InputError(
                f"the start of {start.part.name} is for preconditioning.{name} = {value}, not {here}: make one by dpdm "
                "pretrain --like"
            )
    if guided and start.classes and not start.label_dropout:
        raise InputError(
            f"the start of {start.part.name} saw no image without its label (loss.label_dropout = 0), and guidance "
            "needs it: make another one, or set sampler.guidance to 0"
        )
    if start.codec != codec:
        raise InputError(
            f"the start of {start.part.name} was not made in the latents of this run's codec: make one by dpdm "
            "pretrain --like, with the same --set codec.…, or leave one of the two out"
        )


def load_start(network: nn.Module, start: PublicStart, facts: ImageFacts) -> None:
    """Put public weights into a network; where they know no classes, all classes begin alike.

    Raises:
        InputError: They are those of another network, or know other classes.
    """
    if start.classes not in ((), facts.class_names):
        one, there = (", ".join(names[:3]) for names in (start.classes, facts.class_names))
        raise InputError(
            f"the start of {start.part.name} knows the classes {one}, ..., and these images have {there or 'none'}, "
            "...: make one for them, by dpdm pretrain --like; dpdm ledger register tells it their names"
        )
    if start.shape != facts.shape:
        here, made = (" × ".join(map(str, shape)) for shape in (facts.shape, start.shape))
        raise InputError(
            f"the start of {start.part.name} is for images of {made} (channels, height, width), and these are {here}: "
            "make one for them, by dpdm pretrain --like"
        )
    own = network.state_dict()
    other = [name for name in own.keys() | start.weights.keys() if _shape(own, name) != _shape(start.weights, name)]
    for name in sorted(other):
        raise InputError(
            f"the start of {start.part.name} is for another network or other images ({name} is "
            f"{_shape(start.weights, name)} there and {_shape(own, name)} here): make one by dpdm pretrain --like"
        )
    network.load_state_dict(start.weights)


def forget_classes(network: nn.Module) -> None:
    """Let a network's classes be alike, and stay so: for public images that have other classes."""
    for module in network.modules():
        if isinstance(module, ConditionEmbedding):
            nn.init.zeros_(module.classes.weight)
            module.classes.requires_grad_(False)


def _shape(tensors: Mapping[str, Tensor], name: str) -> str:
    return f"of shape {tuple(tensors[name].shape)}" if name in tensors else "not there"
