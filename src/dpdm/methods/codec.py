"""`[codec]`: a public autoencoder, in whose latents private images are learnt. A generator decodes what it draws.

A latent is kept as an image is: in levels from 0 to 255 of some channels. So whatever learns images learns latents.
"""

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float, Float32
from numpy import ndarray
from torch import Tensor

from dpdm.data import ImageDataset
from dpdm.data.dataset import in_parts
from dpdm.methods.interface import Kept, Run
from dpdm.methods.start import weights_digest
from dpdm.methods.values import ImageFacts, PublicStart, Read
from dpdm.networks import Frame, KLCodec, Posed
from dpdm.networks.codec import ConvCodec, latent_shape
from dpdm.networks.frame import framed
from dpdm.networks.pose import posed_shape
from dpdm.types import (
    Images,
    InputError,
    Latents,
    images_to_tensor,
    levels_to_tensor,
    require_counts,
    require_name,
    require_within,
)

AnyCodec = ConvCodec | Posed | KLCodec | Frame
"""One that `[codec]` names, that of a text-to-image pipeline, which is read with its folder, or a frame."""

CODEC = "codec"
"""What the folder of a codec says in place of a preconditioning: it is no denoiser."""

_WEIGHTS = "codec."  # what the names of a codec's tensors in a release begin with
_SHA256 = re.compile("[0-9a-f]{64}", re.ASCII)
_REMEDY = "make one by dpdm pretrain --kind codec --like"


@dataclass(frozen=True, kw_only=True)
class Codec:
    """`[codec]` of the kind "autoencoder", the default. A method learns in its latents.

    Args:
        source: The folder that `dpdm pretrain --kind codec` made. A release keeps only the folder's name.
        sha256: Digest of the weights (default: the folder's). A release stores it.

    Guarantees:
        * The latent of an image depends on this image alone, to the bit (`ConvCodec.levels`).
        * A release holds the weights, and `require_same` refuses any but those that its settings name.

    Example:
        >>> Diffusion(codec=Codec(source="codecs/photographs")).codec.source
        'codecs/photographs'
    """

    kind: ClassVar[str] = "autoencoder"
    source: str
    sha256: str = ""

    def __post_init__(self) -> None:
        if not self.source:
            raise InputError(f"codec.source is empty: {_REMEDY}")
        require_name(self.source, "the codec (codec.source)")
        if self.sha256 and not _SHA256.fullmatch(self.sha256):
            raise InputError("codec.sha256 must be 64 hexadecimal digits")

    def said(self, start: PublicStart | None) -> "Codec":
        """Return the codec in the form that a release stores: the folder's name and the digest of the weights.

        Raises:
            InputError: The weights have another digest than `sha256`.
        """
        digest = self.sha256 if start is None else start.sha256
        if self.sha256 not in ("", digest):
            raise InputError(f"{self.source}: another codec than the one that codec.sha256 names")
        return replace(self, source=Path(self.source).expanduser().resolve().name or CODEC, sha256=digest)

    def require_same(self, read: Read, facts: ImageFacts, where: str) -> None:
        """Raise InputError unless a file has the weights whose digest a release names."""
        if not self.sha256:
            raise InputError(f"{where} is of a run with a codec, and config.toml lacks codec.sha256")
        with torch.device("meta"):
            names = ConvCodec(facts.shape).state_dict()
        if weights_digest({name: read(f"{_WEIGHTS}{name}") for name in names}) != self.sha256:
            raise InputError(f"{where} holds another codec than the public one that config.toml names")


@dataclass(frozen=True, kw_only=True)
class Pose:
    """`[codec]` of the kind "pose": images are learnt without their pose, and their pose beside them.

    Each image is centred, straightened and stretched by its own moments. Five numbers say how, and are learnt with it.
    What is drawn is moved back by the pose that is drawn with it. It is for grey images of one thing on a plain ground,
    such as written signs. Nothing public is needed.

    Args:
        ground: The level of the ground: 0 is black, 255 white.

    Guarantees:
        * What is learnt of an image depends on this image alone, to the bit (`Posed.rows`).

    Source:
        Hu 1962 (normalisation by moments).

    Example:
        >>> PriorAlone(codec=Pose()).plan(epsilon=1.0, dataset_size=60000).steps
        0
    """

    kind: ClassVar[str] = "pose"
    ground: int = 0

    def __post_init__(self) -> None:
        require_counts(ground=self.ground or 1)
        require_within(0, 255, ground=self.ground)

    @property
    def latents(self) -> str:
        """What a start says that was trained on such images."""
        return f"{self.kind}, ground {self.ground}"


AnyLatents = Codec | Pose
"""What `[codec]` can say."""


def folders_of(codec: AnyLatents | None) -> tuple[str, ...]:
    """Return the folder of a codec, if it has one: the last of a method's `start_folders`."""
    return (codec.source,) if isinstance(codec, Codec) else ()


def digests_of(codec: AnyLatents | None) -> tuple[str, ...]:
    """Return the digest of its weights, if it has some."""
    return (codec.sha256,) if isinstance(codec, Codec) else ()


def begun_from(codec: AnyLatents | None, folders: Sequence[str]) -> AnyLatents | None:
    """Return the codec, if there is one, with the last of these as its folder."""
    return replace(codec, source=folders[-1]) if isinstance(codec, Codec) else codec


def said_of(codec: AnyLatents | None, starts: Sequence[PublicStart]) -> AnyLatents | None:
    """Return the codec, if there is one, as a release says it; its weights are the last of the starts."""
    return codec.said(starts[-1] if starts else None) if isinstance(codec, Codec) else codec


def latents_of(codec: AnyLatents | None, start: PublicStart | None) -> str:
    """Return what a start must say of its latents that was trained in these: the digest of weights, or a name."""
    if isinstance(codec, Pose):
        return codec.latents
    return "" if codec is None or start is None else start.sha256


def require_same(codec: AnyLatents | None, read: Read, facts: ImageFacts, where: str) -> None:
    """Raise InputError unless a file's weights are those of the codec, if it has some."""
    if isinstance(codec, Codec):
        codec.require_same(read, facts, where)


def require_images(codec: AnyLatents | None, facts: ImageFacts) -> None:
    """Raise InputError unless images are such as a codec is for."""
    if isinstance(codec, Pose) and facts.shape[0] != 1:
        raise InputError("codec.kind = pose is for grey images: set data.channels=1, or leave codec out (codec=none)")


def seen_by(codec: AnyLatents | AnyCodec | None, facts: ImageFacts) -> ImageFacts:
    """Return the facts of what is learnt: of latents, or of the images themselves."""
    if codec is None:
        return facts
    if isinstance(codec, Pose):
        return facts._replace(shape=posed_shape(facts.shape))
    return facts._replace(shape=latent_shape(facts.shape) if isinstance(codec, Codec) else codec.latent)


def untrained(codec: AnyLatents | None, facts: ImageFacts, *, seed: int) -> ConvCodec | Posed | None:
    """Return the network of a codec with weights that are nobody's, to be loaded into; None without a codec.

    Raises:
        InputError: It is not for such images.
    """
    if codec is None:
        return None
    require_images(codec, facts)
    if isinstance(codec, Pose):
        return Posed(facts.shape, ground=codec.ground)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ConvCodec(facts.shape).requires_grad_(False).eval()


def load_codec(network: ConvCodec, start: PublicStart) -> None:
    """Put public weights into a codec.

    Raises:
        InputError: They are those of another network, or for other images.
    """
    name = start.part.name
    if start.preconditioning != CODEC:
        raise InputError(f"the start of {name} holds no codec: {_REMEDY}")
    if start.shape != network.shape:
        here, made = (" × ".join(map(str, shape)) for shape in (network.shape, start.shape))
        raise InputError(
            f"the codec of {name} is for images of {made} (channels, height, width), not {here}: {_REMEDY}"
        )
    if _shapes(network.state_dict()) != _shapes(start.weights):
        raise InputError(f"the codec of {name} is of another version: {_REMEDY}")
    network.load_state_dict(start.weights)


def in_latents(run: Run, network: AnyCodec | None, data: ImageDataset) -> ImageDataset:
    """Return private images in the latents of the run's codec, kept in private/; in a frame; or as they are.

    Which records are blank, whose they are, and of which class they are, stays.
    """
    if network is None:
        return data
    if isinstance(network, Frame):
        return data.shown_by(framed(data.images, network.latent[1:]))
    if isinstance(network, ConvCodec):
        load_codec(network, run.starts[-1])
        make, by = network.levels, f"weights sha256:{run.starts[-1].sha256}"
    elif isinstance(network, Posed):
        make, by = network.rows, f"pose, ground {network.ground}"
    else:
        make, by = network.rows, f"weights sha256:{network.sha256}"
    kept = run.keep("latents", data.images, make, made_by=f"latents; {by}")
    return data.shown_by(from_rows(kept, len(data), network))


def from_rows(kept: Kept | Float32[ndarray, "images numbers"], number: int, network: AnyCodec) -> Images | Latents:
    """Return latents as training keeps them, of rows that the codec made."""
    channels, height, width = network.latent
    latents = np.empty((number, height, width, channels), dtype=network.dtype)
    for part in in_parts(number):
        latents[part] = kept[part].reshape(-1, height, width, channels)
    return latents


def rehearse(network: AnyCodec | None, starts: Sequence[PublicStart]) -> None:
    """Raise InputError unless the codec of a run, the last of its starts, is one, and for its images."""
    if isinstance(network, ConvCodec):
        load_codec(copy.deepcopy(network), starts[-1])


def seen_of(network: AnyCodec | None, images: Images) -> Float[Tensor, "images channel height width"]:
    """Return images, or their latents, as a denoiser sees them."""
    if network is None:
        return images_to_tensor(images)
    rows = network.levels(images) if isinstance(network, ConvCodec) else network.rows(images)
    return levels_to_tensor(from_rows(rows.numpy(), len(images), network))


def decoded(
    network: AnyCodec | None, drawn: Float[Tensor, "images latent down across"]
) -> Float[Tensor, "images channel height width"]:
    """Return the images that drawn latents stand for; drawn images themselves without a codec."""
    return drawn if network is None else network.decode(drawn.float().clamp(-network.most, network.most)).float()


def memory_of(codec: AnyLatents | None, facts: ImageFacts, records: int) -> int:
    """Return the bytes that the latents of so many images take."""
    return 0 if codec is None else records * int(np.prod(seen_by(codec, facts).shape))


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}
