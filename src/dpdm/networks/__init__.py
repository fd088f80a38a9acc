"""The raw networks F(x; c_noise, label). One example never sees another.

Each is a frozen value that says what to build; `build` makes the module for an image shape and a number of classes. The
input may be `images_in` images of that shape, one behind the other in the channels; the output is one.
"""

from dpdm.networks.compact_unet import CompactUNet
from dpdm.networks.mlp import MLP
from dpdm.networks.unet import UNet
from dpdm.networks.zero import Zero

Network = CompactUNet | MLP | UNet | Zero

__all__ = ["MLP", "CompactUNet", "Network", "UNet", "Zero"]
