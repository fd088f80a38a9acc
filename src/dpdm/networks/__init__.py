"""The raw networks F(x; c_noise, label). One example never sees another.

Each is a frozen value that says what to build; `build` makes the module for an image shape and a number of classes.
"""

from dpdm.networks.compact_unet import CompactUNet
from dpdm.networks.mlp import MLP
from dpdm.networks.unet import UNet

Network = CompactUNet | MLP | UNet

__all__ = ["MLP", "CompactUNet", "Network", "UNet"]
