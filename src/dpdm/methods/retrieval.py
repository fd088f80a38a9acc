"""`[retrieval]`: public images begin each trajectory, and private steps train the network for what is left of it alone.

Nothing here is private. What a public network makes of public images at a high noise level is a key. Where the network
brings the images from there is the end of a public trajectory. A new image asks by what the public network first makes
of noise.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float32, Float64, Int, Int64, UInt8
from torch import Tensor, nn

from dpdm.data import ImageDataset
from dpdm.data.procedural import tell_progress
from dpdm.diffusion import DDIM, Below, NoiseLevels, PreconditionedDenoiser
from dpdm.methods.interface import Run
from dpdm.methods.nearest import bytes_of_distances, columns_of, parts_for, squared_distances, whole_features
from dpdm.methods.values import ImageFacts, Read
from dpdm.types import Images, InputError, require_at_most, require_counts, require_within

TRAJECTORIES = "trajectories."
"""What the names of their tensors in a release begin with."""

_MOST_ENTRIES = 50_000
_STEPS = 10  # of the public network: down to the noise level of keys, and from there on
_HIGHEST = 80.0  # noise level at which questions begin, where training has no highest one
_AT_ONCE = 64


@dataclass(frozen=True, kw_only=True)
class Retrieval:
    """`[retrieval]`: public trajectories give the early part of each trajectory.

    Args:
        keep: Number of public images with a trajectory. A release holds the ends.
        key: The noise level of keys, which are the public network's first guesses at an image.
        level: The noise level at which public trajectories end. Private steps train only below it.

    Source:
        Jiang, Wang & Wang 2025 (RAPID). They ask their questions in sampling. No question depends on a private image.
        So here a run asks as many for each class as there are entries, and its release has the counts of the answers.

    Example:
        >>> Retrieval(keep=500).keep
        500
    """

    keep: int = 2000
    key: float = 5.0
    level: float = 1.0

    def __post_init__(self) -> None:
        require_counts(keep=self.keep)
        require_at_most(_MOST_ENTRIES, keep=self.keep)
        require_within(0.01, 100, key=self.key, level=self.level)
        if self.level >= self.key:
            raise InputError(f"retrieval.level = {self.level:g} must be below retrieval.key = {self.key:g}")

    def late(self, noise_levels: NoiseLevels) -> Below:
        """Return the noise levels of private steps: the late part alone."""
        if self.key > noise_levels.span[1]:
            raise InputError(
                f"retrieval.key = {self.key:g} is above all noise levels of training, which go up to "
                f"{noise_levels.span[1]:.3g}: set it lower"
            )
        return Below(base=noise_levels, most=self.level)

    def entries(self, public: ImageDataset, facts: ImageFacts, *, seed: int) -> Int64[Tensor, " entries"]:
        """Return which public images have a trajectory, chosen by a public seed.

        Raises:
            InputError: There are too few images, or a class has none although public classes have the private names.
        """
        if len(public) < self.keep:
            raise InputError(
                f"{public.name} has {len(public):,} images, and retrieval.keep is {self.keep:,}: set fewer"
            )
        chosen = torch.randperm(len(public), generator=torch.Generator().manual_seed(seed))[: self.keep]
        if (known := _labels_of(public, facts)) is not None:
            for label in set(range(facts.num_classes)) - set(known[chosen].tolist()):
                raise InputError(
                    f"none of the {self.keep:,} images of {public.name} that have a trajectory shows the class "
                    f"{facts.class_names[label]}: set retrieval.keep higher"
                )
        return chosen

    def memory(self, seen: ImageFacts) -> int:
        """Return the most bytes that trajectories need while they are made."""
        looked_at = 8 * self.keep * columns_of(seen.shape) + bytes_of_distances(self.keep, against=self.keep)
        return 11 * self.keep * math.prod(seen.shape) + 2 * looked_at

    def require_possible(self, read: Read, facts: ImageFacts, where: str) -> None:
        """Raise InputError unless a file's counts add up to the number of a run's answers."""
        counts = read(f"{TRAJECTORIES}counts")
        if not (counts >= 0).all() or (counts != counts.round()).any() or (counts.sum(1) != self.asked(facts)).any():
            raise InputError(f"{where} holds counts of retrieved trajectories that no run comes to")

    def asked(self, facts: ImageFacts) -> int:
        """Return the number of questions for each class."""
        return max(1, self.keep // max(1, facts.num_classes))


class Trajectories(nn.Module):
    """The ends of public trajectories, and how often each was nearest to what a public network made of noise."""

    ends: UInt8[Tensor, "entries channel height width"]
    counts: Float64[Tensor, "class entries"]

    def __init__(self, of: Retrieval, seen: ImageFacts) -> None:
        super().__init__()
        self.of, self.seen = of, seen
        self.register_buffer("ends", torch.zeros(of.keep, *seen.shape, dtype=torch.uint8))
        self.register_buffer("counts", torch.ones(max(1, seen.num_classes), of.keep, dtype=torch.float64))

    def draw(
        self, labels: Int[Tensor, " batch"], *, random: torch.Generator
    ) -> Float32[Tensor, "batch channel height width"]:
        """Return an end for each label, as often as questions of its class were answered by it."""
        chosen = torch.multinomial(self.counts[labels], 1, generator=random)[:, 0]
        return self.ends[chosen].float().div(127.5).sub(1)

    @torch.no_grad()
    def fill(
        self,
        run: Run,
        denoiser: PreconditionedDenoiser,
        seen_of: Callable[[Images], Float[Tensor, "images channel height width"]],
        *,
        null_label: int | None,
    ) -> None:
        """Make the trajectories of public images, and ask for them.

        Args:
            run: Has the public images.
            denoiser: The public one.
            seen_of: Returns what it sees of images.
            null_label: The label of images whose class nobody knows (default: any, at random).
        """
        assert run.public is not None
        of, classes, random = self.of, len(self.counts), torch.Generator().manual_seed(run.seed)
        chosen, known = of.entries(run.public, self.seen, seed=run.seed), _labels_of(run.public, self.seen)
        labels = torch.randint(classes, (of.keep,), generator=random)
        if known is not None:
            labels = known[chosen]
        elif null_label is not None:
            labels = torch.full((of.keep,), null_label)
        noise = torch.randn((of.keep, *self.seen.shape), generator=random)
        for start in range(0, of.keep, _AT_ONCE):
            part = slice(start, start + _AT_ONCE)
            noise[part] += seen_of(run.public.images[chosen[part].numpy()]) / of.key
        answers = _Answers(denoiser, run, images=2 * of.keep + classes * of.asked(self.seen))
        keys, ends = answers(noise, labels, of.key, of.key), answers(noise, labels, of.key, of.level)
        counts = torch.zeros_like(self.counts, device="cpu")
        highest = min(_HIGHEST, denoiser.preconditioning.noise_levels.span[1])
        for label in range(classes):
            asked = torch.full((of.asked(self.seen),), label)
            noise = torch.randn((len(asked), *self.seen.shape), generator=random)
            among = torch.arange(of.keep) if known is None else (labels == label).nonzero()[:, 0]
            nearest = among[_nearest(answers(noise, asked, highest, of.key), keys[among])]
            counts[label] = torch.bincount(nearest, minlength=of.keep)
        self.ends.copy_(run.processes.from_first(ends))
        self.counts.copy_(run.processes.from_first(counts))


class _Answers:
    """What a public network makes of noisy images, in levels."""

    def __init__(self, denoiser: PreconditionedDenoiser, run: Run, *, images: int) -> None:
        self._denoiser, self._run, self._images, self._done = denoiser, run, images, 0

    def __call__(
        self, noisy: Float[Tensor, "images channel height width"], labels: Int[Tensor, " images"], at: float, to: float
    ) -> UInt8[Tensor, "images channel height width"]:
        """Return its answers at one noise level, to which it brings images from another, in whose unit they are."""
        answers = torch.empty(noisy.shape, dtype=torch.uint8)
        for start in range(0, len(noisy), _AT_ONCE):
            part = slice(start, start + _AT_ONCE)
            x, known = noisy[part].to(self._run.device), labels[part].to(self._run.device)
            with self._run.autocast():
                if at == to:
                    made = self._denoiser(x * at, x.new_full((len(x),), at), known)
                else:
                    sampler = DDIM(steps=_STEPS, sigma_max=at, sigma_min=to)
                    made = sampler(self._denoiser, x, known, generator=torch.Generator())
            answers[part] = made.float().clamp(-1, 1).add(1).mul(127.5).round().byte().cpu()
            self._done += len(x)
            tell_progress("public trajectories", self._done, self._images)
        return answers


def require_public_denoiser(*, begun: bool, prior: bool) -> None:
    """Raise InputError unless there is a public network that draws images by itself.

    Around a prior, the early part of a trajectory is the prior's: it was released, and nearly exact there.
    """
    if not begun:
        raise InputError("retrieval needs a public network: name a start (dpdm pretrain), or a diffusers folder")
    if prior:
        raise InputError(
            "retrieval is for a public network without a prior, which would make the early part by itself: set "
            "preconditioning.kind=edm and start.gains=false, or leave retrieval out"
        )


def _labels_of(public: ImageDataset, facts: ImageFacts) -> Int64[Tensor, " images"] | None:
    """Return the classes of public images, if they have the private names."""
    known = facts.num_classes and public.labels is not None and public.class_names == facts.class_names
    return torch.from_numpy(public.labels) if known else None


def _nearest(
    x: UInt8[Tensor, "one channel height width"], y: UInt8[Tensor, "other channel height width"]
) -> Int64[Tensor, " one"]:
    """Return which of the others each is nearest to, by whole numbers."""
    one, other = (whole_features(t.movedim(1, -1).numpy()).double() for t in (x, y))
    chosen = torch.zeros(len(one), dtype=torch.long)
    for part in parts_for(len(one), against=len(other)):
        chosen[part] = squared_distances(one[part], other, other.square().sum(1)).argmin(1)
    return chosen
