"""The raw networks F(x; c_noise, label). One example never sees another.

Each is a frozen value that says what to build; `build` makes the module for an image shape and a number of classes. The
input may be `images_in` images of that shape, one behind the other in the channels; the output is one. `MakeNetwork`
says all that a network of one's own needs.
"""

from torch import nn

from dpdm.networks import own
from dpdm.networks.compact_unet import CompactUNet
from dpdm.networks.condition_unet import ConditionUNet, TextNetwork
from dpdm.networks.diffusers_unet import DiffusersNetwork, DiffusersUNet
from dpdm.networks.folder import DiffusersFolder
from dpdm.networks.frame import Frame
from dpdm.networks.kl import KLCodec
from dpdm.networks.mlp import MLP
from dpdm.networks.own import MakeNetwork, Own
from dpdm.networks.pipeline import PipelineFolder
from dpdm.networks.pose import Posed
from dpdm.networks.text_folder import TextToImageFolder, digest_of_part
from dpdm.networks.unet import UNet
from dpdm.types import InputError

Network = CompactUNet | MLP | UNet | DiffusersFolder | TextToImageFolder | Own
"""What settings can say of a network."""

OwnNetwork = nn.Module | MakeNetwork
"""The code of a network that is not one of these: a module, which is copied, or what makes one."""

_KNOWN = (CompactUNet, MLP, UNet, DiffusersFolder, TextToImageFolder, Own)


def build_network(
    network: Network | OwnNetwork, shape: tuple[int, int, int], *, num_classes: int, images_in: int = 1
) -> nn.Module:
    """Return the network for images of `shape` (channel, height, width).

    Raises:
        InputError: `network` is none and makes none, or is not for such images.
    """
    if type(network) in _KNOWN:
        return network.build(shape, num_classes=num_classes, images_in=images_in)  # type: ignore[union-attr, operator]
    return own.make(network, shape, num_classes=num_classes, images_in=images_in)  # type: ignore[arg-type]


def code_of(network: Network | OwnNetwork | None) -> OwnNetwork | None:
    """Return `network` if it is one's own: what a release of it needs to be opened again."""
    return None if network is None or type(network) in _KNOWN else network  # type: ignore[return-value]


def said_of(network: Network | OwnNetwork, module: nn.Module) -> Network:
    """Return what a run's settings say of the `module` that `network` made.

    Raises:
        InputError: A folder holds other public weights than those that the module has begun with.
    """
    if isinstance(network, DiffusersFolder | TextToImageFolder):
        said = network.said()
        if isinstance(module, DiffusersNetwork) and module.begun_with not in ((), said.digests):
            raise InputError(f"{network.source} was changed since the run has read it: begin again")
        return said
    return network if type(network) in _KNOWN else Own.of(module)  # type: ignore[return-value]


__all__ = [
    "MLP",
    "CompactUNet",
    "ConditionUNet",
    "DiffusersFolder",
    "DiffusersNetwork",
    "DiffusersUNet",
    "Frame",
    "KLCodec",
    "MakeNetwork",
    "Network",
    "Own",
    "OwnNetwork",
    "PipelineFolder",
    "Posed",
    "TextNetwork",
    "TextToImageFolder",
    "UNet",
    "build_network",
    "code_of",
    "digest_of_part",
    "said_of",
]
