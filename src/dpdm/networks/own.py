"""Networks of one's own: what they take and give, how they are made, and how a release names them."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from torch import nn

from dpdm.types import InputError, is_of_memory, one_line

_LONGEST_NAME = 255


class MakeNetwork(Protocol):
    """A function, or a class of modules, that makes your own network F.

    F is called with three arguments, by position, and returns one tensor.

    * `x` (batch, images_in · channel, height, width), float: `images_in` images, stacked along the channels.
    * `c_noise` (batch,), float: the noise level, as the preconditioning scales it; of order one.
    * `labels` (batch,), int64: classes from 0; the null class has the index `num_classes`. Without classes all labels
      are the null class 0.
    * It returns (batch, channel, height, width), float: one image for each row.

    Under autocast, `x` is float32 and layers compute in bfloat16. F may depend only on its `state_dict` and its code: a
    release has nothing else of it.

    Privacy:
        F must not mix the rows of a batch, draw random numbers, fill buffers from its input, or have batch
        normalisation. Its first weights must not depend on the private images. The claim does not protect the images
        that first weights come from.

    Example:
        >>> class Blur(torch.nn.Module):
        ...     def __init__(self, shape, *, num_classes, images_in):
        ...         super().__init__()
        ...         self.layer = torch.nn.Conv2d(images_in * shape[0], shape[0], 3, padding=1)
        ...     def forward(self, x, c_noise, labels):
        ...         return self.layer(x)
        >>> Diffusion(network=Blur).code is Blur
        True
    """

    def __call__(self, shape: tuple[int, int, int], *, num_classes: int, images_in: int) -> nn.Module:
        """Return the network for images of `shape` (channel, height, width)."""
        ...


@dataclass(frozen=True, kw_only=True)
class Own:
    """A network whose code is not part of this package: what the settings of a run say of it.

    Args:
        type: The name of its class, with that of its module. It is for people: no code is loaded by it.
    """

    kind: ClassVar[str] = "own"
    type: str

    def __post_init__(self) -> None:
        parts = self.type.split(".")
        if len(self.type) > _LONGEST_NAME or not all(part.isascii() and part.isidentifier() for part in parts):
            raise InputError(f"type must be the name of a class, as package.module.Class, not {self.type[:80]!r}")

    @classmethod
    def of(cls, module: nn.Module) -> "Own":
        """Return what is said of `module`."""
        name = f"{type(module).__module__}.{type(module).__qualname__}"
        parts = [part for part in name.split(".") if part.isascii() and part.isidentifier()]  # <locals> is none
        while len(".".join(parts)) > _LONGEST_NAME:
            parts.pop(0)
        return cls(type=".".join(parts) or "Module")

    def build(self, shape: tuple[int, int, int], *, num_classes: int, images_in: int = 1) -> nn.Module:
        """Refuse: the settings have no code.

        Raises:
            InputError: Always.
        """
        raise InputError(
            f"the network {self.type} is not one of dpdm's, so its code is needed: in Python, "
            "Diffusion(network=...) trains it and Release.load(run, network=...) opens its release"
        )


def make(
    network: nn.Module | MakeNetwork, shape: tuple[int, int, int], *, num_classes: int, images_in: int
) -> nn.Module:
    """Return a copy of a module, or of what a function makes: it may hand out one module again and again.

    Raises:
        InputError: It is neither, cannot be copied, fails, or makes no module.
    """
    made: Any
    try:
        if isinstance(network, nn.Module):
            made = network
        else:
            function: Callable[..., Any] | None = network if callable(network) else getattr(network, "build", None)
            if function is None:
                raise InputError("it is neither a torch.nn.Module nor a function that makes one")
            made = function(shape, num_classes=num_classes, images_in=images_in)
    except Exception as error:
        if is_of_memory(error):
            raise
        raise InputError(f"network = {_short(network)} makes no network: {one_line(error)}") from error
    if not isinstance(made, nn.Module):
        raise InputError(f"network = {_short(network)} makes a {type(made).__name__}, which is no torch.nn.Module")
    try:
        copied: nn.Module = copy.deepcopy(made)
    except Exception as error:
        if is_of_memory(error):
            raise
        raise InputError(f"network = {_short(network)} cannot be copied: {one_line(error)}") from error
    return copied


def _short(network: object) -> str:
    return getattr(network, "__qualname__", type(network).__qualname__)
