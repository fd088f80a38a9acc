"""`[start]`: a network that was trained on public images, around noise of the kind that the private prior has.

Nothing private is spent on the network. Private images say, by one noisy sum, how far to follow it at each noise level.
"""

import fnmatch
import hashlib
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, Int, Int64, Shaped
from torch import Tensor, nn

from dpdm.data import ImageDataset, pixel_digests
from dpdm.diffusion import GAIN_LEVELS, MatchedPreconditioning, PreconditionedDenoiser
from dpdm.methods.interface import Budget, ImageFacts, PublicStart, Run
from dpdm.networks.layers import ConditionEmbedding
from dpdm.privacy import FullSum, gaussian_mu
from dpdm.privacy.sums import BoundedSum, Rows, clipped_sum
from dpdm.types import InputError, images_to_tensor, require_name

GAINS = "gains"
"""What the sum is called that tells how far to follow a public network."""

_TRAINED = {
    "all": ("*",),
    "norms": ("*norm*", "*scale_shift*", "*.bias"),
    "attention": ("*attention*", "*qkv*"),
    "last": ("up.*", "norm.*", "head.*", "*.up.*", "*.norm.*", "*.head.*"),
}
_MOST_PATTERNS, _PATTERN = 16, re.compile(r"[a-zA-Z0-9_.*]{1,64}", re.ASCII)
_SHA256 = re.compile("[0-9a-f]{64}", re.ASCII)
_ROWS = 96  # noisy images at once: each row comes of a computation of one shape
_DRAWS = 64  # noise images, of which each image has one that its pixels choose
_CALLS = 48_000  # of the network, in all: a minute of two cores


@dataclass(frozen=True, kw_only=True)
class Start:
    """`[start]`: public weights to begin with.

    Args:
        source: The folder that `dpdm pretrain` made. A release keeps its name alone.
        gains: Whether private images say how far to follow the public network at each noise level. Without gains it is
            followed wholly, wherever it leads.
        share: What the gains take of the budget, as a share of μ² (`gaussian_mu`).
        sha256: Of the weights, as a release says it. Default: whatever the folder has.
        trains: Which parameters the private steps train: `all`, `norms` (and biases), `attention`, `last` (the output
            half), or names with `*`, joined by commas.
    """

    source: str
    gains: bool = True
    share: float = 0.02
    trains: str = "all"
    sha256: str = ""

    def __post_init__(self) -> None:
        if not self.source:
            raise InputError("source must name the folder that dpdm pretrain made")
        require_name(self.source, "the start (start.source)")
        if self.sha256 and not _SHA256.fullmatch(self.sha256):
            raise InputError("start.sha256 must be 64 hexadecimal digits")
        if len(self.patterns) > _MOST_PATTERNS or not all(map(_PATTERN.fullmatch, self.patterns)):
            raise InputError(
                f"start.trains must be {', '.join(_TRAINED)}, or up to {_MOST_PATTERNS} names of parameters joined by "
                "commas, of letters, digits, _, . and *"
            )
        if not 0 < self.share < 1:
            raise InputError(f"share must be above 0 and below 1, not {self.share}")

    @property
    def patterns(self) -> tuple[str, ...]:
        """What `trains` stands for."""
        return _TRAINED.get(self.trains) or tuple(name.strip() for name in self.trains.split(","))

    def planned(self, budget: Budget) -> tuple[FullSum, ...]:
        """Return the sum of the gains, as a plan has it; none without gains."""
        if not self.gains:
            return ()
        whole = gaussian_mu(epsilon=budget.epsilon, delta=budget.delta)
        return (FullSum(name=GAINS, noise_multiplier=1 / (whole * math.sqrt(self.share))),)

    def said(self, start: PublicStart | None) -> "Start":
        """Return it as a release says it: by the folder's name, and the digest of the weights.

        Raises:
            InputError: The weights are others than `sha256` says.
        """
        digest = self.sha256 if start is None else start.sha256
        if self.sha256 not in ("", digest):
            raise InputError(f"{self.source} holds another start than the one that the settings name (start.sha256)")
        return replace(self, source=Path(self.source).expanduser().resolve().name or "start", sha256=digest)

    def require_same(self, weights: Mapping[str, Shaped[Tensor, "..."]], where: str) -> None:
        """Raise InputError unless weights are those that a release names.

        Without it, weights beside a plan that takes no step could be anything, private images too.
        """
        if weights_digest(weights) != self.sha256:
            raise InputError(f"{where} holds another network than the public one that config.toml names")

    def freeze(self, network: nn.Module) -> None:
        """Leave trainable what `trains` names.

        Raises:
            InputError: Nothing is called so.
        """
        trained = 0
        for name, parameter in network.named_parameters():
            chosen = any(fnmatch.fnmatchcase(name, pattern) for pattern in self.patterns)
            parameter.requires_grad_(chosen)
            trained += chosen
        if not trained:
            known = ", ".join(sorted({name.split(".")[0] for name, _ in network.named_parameters()}))
            raise InputError(f"start.trains = {self.trains} names no parameter of the network, whose parts are {known}")


def weights_digest(weights: Mapping[str, Shaped[Tensor, "..."]]) -> str:
    """Return the SHA-256 of tensors with their names, types and shapes."""
    whole = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        whole.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        whole.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return whole.hexdigest()


def load_start(network: nn.Module, start: PublicStart, facts: ImageFacts) -> None:
    """Put public weights into a network; where they know no classes, all classes begin alike.

    Raises:
        InputError: They are those of another network, or know other classes.
    """
    if start.classes not in ((), facts.class_names):
        one, there = (", ".join(names[:3]) for names in (start.classes, facts.class_names))
        raise InputError(
            f"the start of {start.part.name} knows the classes {one}, ..., and these images have {there or 'none'}, "
            "...: make one for them, by dpdm pretrain --like"
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


def release_gains(run: Run, data: ImageDataset, denoiser: PreconditionedDenoiser) -> Float64[Tensor, " level"]:
    """Return how far to follow the network at each of `GAIN_LEVELS`, from 0 to 1, by one noisy sum.

    With the prior's denoiser a, the network's correction c and the residual r = x₀ − a, the loss at a noise level is
    least at Σ⟨c, r⟩ / Σ⟨c, c⟩ times the correction. An image tells both numbers at some levels, which its pixels
    choose, in units in which a residual of the size that the prior expects has length one; the noise that it gets is
    one of a few public images, which its pixels choose too. All its numbers are clipped as one vector. A gain is shrunk
    by one standard deviation of the noise, so that what is not told from noise is not followed.

    Guarantees:
        * What an image adds depends on this image, on its label and on what was released before, on nothing else.
    """
    levels = len(GAIN_LEVELS)
    of_each = next(k for k in (12, 6, 4, 3, 2, 1) if k == 1 or k * run.mechanism.plan.dataset_size <= _CALLS)
    rows = _Pairs(denoiser, data, of_each, run.seed)

    def cast() -> BoundedSum:
        return clipped_sum(rows.parts(), dimensions=2 * levels, max_norm=math.sqrt(of_each))

    noisy, noise_std = run.once(GAINS, cast)
    explained, squared = noisy.view(2, levels)
    gains: Tensor = ((explained - noise_std) / squared.clamp(min=noise_std)).clamp(0, 1)
    return gains.nan_to_num(0)  # without noise, a network that adds nothing has 0 / 0


def rehearse_gains(denoiser: PreconditionedDenoiser, facts: ImageFacts) -> None:
    """Make the rows of an image that nobody took, as many at once as of private ones."""
    channels, height, width = facts.shape
    black = np.zeros((1, height, width, channels), dtype=np.uint8)
    labels = np.zeros(1, dtype=np.int64) if facts.num_classes else None
    data = ImageDataset(
        images=black, labels=labels, num_classes=facts.num_classes, class_names=facts.class_names, name="made up"
    )
    next(_Pairs(denoiser, data, 1, 0).parts())


class _Pairs:
    """(⟨c, r⟩, ⟨c, c⟩) of each image at some noise levels, zero at the others."""

    def __init__(self, denoiser: PreconditionedDenoiser, data: ImageDataset, of_each: int, seed: int) -> None:
        assert isinstance(denoiser.preconditioning, MatchedPreconditioning)
        self._denoiser, self._preconditioning, self._data = denoiser, denoiser.preconditioning, data
        self._of_each, self._at_once = of_each, _ROWS // of_each
        random = torch.Generator().manual_seed(seed)
        self._noise = torch.randn((_DRAWS, *data.shape), generator=random)
        self._device = next(denoiser.parameters()).device

    @torch.no_grad()
    def parts(self) -> Iterator[Rows]:
        """Yield all images, part by part; the last part is filled up, so that all are of one size."""
        weights = torch.from_numpy(self._data.weights)
        known = self._data.labels
        for start in range(0, len(self._data), self._at_once):
            part = slice(start, start + self._at_once)
            images = self._data.images[part]
            labels = torch.zeros(self._at_once, dtype=torch.long)
            if known is not None:
                labels[: len(images)] = torch.from_numpy(known[part])
            x = torch.zeros(self._at_once, *self._data.shape)
            x[: len(images)] = images_to_tensor(images)
            keys = torch.zeros(self._at_once, 2, dtype=torch.long)
            keys[: len(images)] = torch.from_numpy(pixel_digests(images)[:, :2].astype("int64"))
            yield self._rows(x, labels, keys)[: len(images)], weights[part]

    def _rows(
        self,
        x: Float32[Tensor, "images channel height width"],
        labels: Int[Tensor, " images"],
        keys: Int64[Tensor, "images 2"],
    ) -> Float[Tensor, "images pairs"]:
        """Return a row of zeros but for the levels of each image."""
        levels = len(GAIN_LEVELS)
        apart = levels // self._of_each
        chosen = (keys[:, :1] + apart * torch.arange(self._of_each)) % levels
        sigma = torch.tensor(GAIN_LEVELS)[chosen].flatten().to(self._device)
        x, noise, labels = (
            t.repeat_interleave(self._of_each, dim=0).to(self._device)
            for t in (x, self._noise[keys[:, 1] % _DRAWS], labels)
        )
        noisy = x + sigma[:, None, None, None] * noise
        prior, correction = self._preconditioning.corrected(self._denoiser.network, noisy, sigma, labels)
        scale = self._preconditioning.loss_weight(sigma).double() / prior[0].numel()
        correction, residual = correction.flatten(1).double(), (x - prior).flatten(1).double()
        pairs = torch.stack([(correction * residual).sum(1) * scale, correction.square().sum(1) * scale], dim=1)
        rows = torch.zeros(len(chosen), 2, levels, dtype=torch.float64)
        rows.scatter_(2, chosen[:, None].expand(-1, 2, -1), pairs.cpu().view(len(chosen), self._of_each, 2).mT)
        return rows.flatten(1)


def _shape(tensors: Mapping[str, Tensor], name: str) -> str:
    return f"of shape {tuple(tensors[name].shape)}" if name in tensors else "not there"
