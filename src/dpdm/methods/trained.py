"""What private steps change of a network that was trained on public images: `start.trains`."""

import fnmatch
import re
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float64, UInt8
from torch import Tensor, nn

from dpdm.networks.low_rank import LowRank, low_rank, matrices
from dpdm.types import InputError

_SETS = {
    "all": ("*",),
    "norms": ("*norm*", "*scale_shift*", "*.bias"),
    "attention": ("*attention*", "*qkv*"),
    "last": ("up.*", "norm.*", "head.*", "*.up.*", "*.norm.*", "*.head.*"),
}
_MOST_PATTERNS, _PATTERN = 16, re.compile(r"[a-zA-Z0-9_.*]{1,64}", re.ASCII)
_COUNTED = re.compile("(low-rank|chosen):([1-9][0-9]{0,3})", re.ASCII)


@dataclass(frozen=True)
class Trained:
    """What a word, or some, say of the parameters that train.

    Args:
        said: `all`, `norms` (and biases), `attention`, `last` (the output half), or names with `*`, joined by commas.
            Or `low-rank:R`, which trains W + B A of rank R for each matrix W (`LowRank`). Or `chosen:K`, the K matrices
            that private images choose. Or both `low-rank:R` and `chosen:K`, joined by a comma.

    Raises:
        InputError: It is none of these.
    """

    said: str

    def __post_init__(self) -> None:
        patterns = self.patterns
        if self._counts:
            if len(self._counts) < len(self._words):  # one of them twice, too
                raise InputError(
                    f"start.trains = {self.said[:80]!a}: low-rank:4 and chosen:8 stand alone, or with one another, as "
                    "low-rank:4,chosen:8"
                )
        elif len(patterns) > _MOST_PATTERNS or not all(map(_PATTERN.fullmatch, patterns)):
            raise InputError(
                f"start.trains must be {', '.join(_SETS)}, low-rank:4, chosen:8 (with numbers from 1 to 9999), or up "
                f"to {_MOST_PATTERNS} names of parameters joined by commas, of letters, digits, _, . and *"
            )

    @property
    def patterns(self) -> tuple[str, ...]:
        """The names that `said` stands for."""
        return _SETS.get(self.said) or self._words

    @property
    def rank(self) -> int | None:
        """The rank of what trains beside each matrix; None where matrices train themselves."""
        return self._counts.get("low-rank")

    @property
    def chosen(self) -> int | None:
        """How many matrices private images choose; None where they choose none."""
        return self._counts.get("chosen")

    def widest(self, network: nn.Module) -> UInt8[Tensor, " matrix"]:
        """Return a choice that holds until private images have made theirs: the largest matrices.

        Raises:
            InputError: The network has fewer than are to be chosen.
        """
        sizes = torch.tensor([layer.weight.numel() for layer in matrices(network).values()], device="cpu")
        assert self.chosen is not None
        if self.chosen > len(sizes):
            raise InputError(f"start.trains chooses {self.chosen} matrices, and the network has {len(sizes)}: fewer")
        return marked(sizes.double(), self.chosen)

    def freeze(self, network: nn.Module, choice: UInt8[Tensor, " matrix"] | None) -> None:
        """Leave trainable what private steps change, given what private images chose, if they do.

        Raises:
            InputError: Nothing is called so.
        """
        if self._counts:
            self._freeze_matrices(network, choice)
            return
        trained = 0
        for name, parameter in network.named_parameters():
            chosen = any(fnmatch.fnmatchcase(name, pattern) for pattern in self.patterns)
            parameter.requires_grad_(chosen)
            trained += chosen
        if not trained:
            known = ", ".join(sorted({name.split(".")[0] for name, _ in network.named_parameters()}))
            raise InputError(f"start.trains = {self.said} names no parameter of the network, whose parts are {known}")

    def stepped(self, network: nn.Module, choice: UInt8[Tensor, " matrix"] | None, *, seed: int) -> nn.Module:
        """Return what the steps are taken with: `network` itself, or one with A and B, which shares its tensors."""
        if self.rank is None:
            return network
        adapted = low_rank(network, self.rank, seed=seed)
        self._freeze_matrices(adapted, choice)
        return adapted

    def _freeze_matrices(self, network: nn.Module, choice: UInt8[Tensor, " matrix"] | None) -> None:
        """Let the chosen matrices train, or all; where they have A and B, these."""
        pairs = [[layer.a, layer.b] for layer in network.modules() if isinstance(layer, LowRank)]
        of_each = pairs or [[layer] for layer in matrices(network).values()]
        chosen = [True] * len(of_each) if choice is None else choice.bool().tolist()
        network.requires_grad_(False)
        for layers, trains in zip(of_each, chosen, strict=True):
            for layer in layers:
                layer.weight.requires_grad_(trains)

    @property
    def _words(self) -> tuple[str, ...]:
        return tuple(name.strip() for name in self.said.split(","))

    @cached_property
    def _counts(self) -> dict[str, int]:
        found = [_COUNTED.fullmatch(word) for word in self._words]
        return {match[1]: int(match[2]) for match in found if match}


def marked(sums: Float64[Tensor, " matrix"], number: int) -> UInt8[Tensor, " matrix"]:
    """Return one for each of the largest sums, and zero for the others."""
    choice = torch.zeros(len(sums), dtype=torch.uint8, device="cpu")
    choice[sums.cpu().topk(number).indices] = 1
    return choice
