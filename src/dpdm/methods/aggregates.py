"""Lower layers of a critic: what they release of a batch, and how they learn by private steps.

One linear function of each class lies on top of them. Its gradient in one image is that image's features, so the
gradient of a batch is the sum of its features, class by class: the aggregate. All that clips and hides gradients clips
and hides aggregates.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor, nn
from torch.nn.functional import group_norm, normalize, relu

from dpdm.methods.adversary import Pairs
from dpdm.methods.classifier import Labelled
from dpdm.methods.halvings import Halvings
from dpdm.methods.values import ImageFacts

_OF_COUNTS = 0.1  # length of what each image has in common: its sum counts images, and costs 0.5 % of the features
_RAREST = 0.01  # of a class, relative to the average one
_LEAST = 1e-12


class LowerLayers(nn.Module):
    """Strided convolutions, and one linear function of their features for each class.

    Args:
        facts: Of the images.
        width: Channels of the first layer.
    """

    def __init__(self, facts: ImageFacts, *, width: int) -> None:
        super().__init__()
        self.halvings = Halvings(facts.shape, width=width)
        self.rows = nn.Linear(self.halvings.numbers + 1, max(1, facts.num_classes), bias=False)
        nn.init.zeros_(self.rows.weight)

    def features(self, x: Float[Tensor, "rows channel height width"]) -> Float[Tensor, "rows feature"]:
        """Return features of length one, the last of which all images share."""
        for layer in self.halvings.layers:  # normed, lest features be nearly linear: their mean knew one image alone
            x = relu(group_norm(layer(x), 1))
        features = x.flatten(1)
        unit = features / (features.square().sum(1, keepdim=True) + _LEAST).sqrt()
        return torch.cat([math.sqrt(1 - _OF_COUNTS**2) * unit, torch.full_like(unit[:, :1], _OF_COUNTS)], dim=1)

    def forward(
        self, x: Float[Tensor, "rows channel height width"], labels: Int[Tensor, " rows"]
    ) -> Float[Tensor, " rows"]:
        """Return one number for each image: its class's function of its features."""
        of_class: Tensor = self.rows(self.features(x))
        return of_class.gather(1, labels[:, None]).squeeze(1)

    def train_only(self, *, layers: bool) -> "LowerLayers":
        """Let the next step be one of the convolutions, or else one that releases an aggregate."""
        self.halvings.requires_grad_(layers)
        self.rows.requires_grad_(not layers)
        return self


@dataclass(frozen=True)
class RowLoss:
    """ℓ = ⟨w_y, u(x)⟩, whose gradient with respect to w_y is u(x): what an image adds to an aggregate."""

    def __call__(self, lower: nn.Module, batch: Labelled) -> Float[Tensor, " batch"]:
        """Return the loss of each image."""
        loss: Tensor = lower(batch.x, batch.labels)
        return loss


@dataclass(frozen=True)
class ContrastLoss:
    """ℓ = ⟨w_y, u(G(z)) − u(x)⟩, with w from what was released: one clipped gradient of the convolutions."""

    def __call__(self, lower: nn.Module, pairs: Pairs) -> Float[Tensor, " batch"]:
        """Return the loss of each pair."""
        images, labels = pairs
        values = lower(images.flatten(0, 1), labels.repeat_interleave(2)).view(-1, 2)
        loss: Tensor = values[:, 1] - values[:, 0]
        return loss


class Critic(nn.Module):
    """What is above the lower layers: one linear function for each class, known in closed form.

    Of what private and generated images of a class have in the mean, μ and f, ⟨w, μ − f⟩ − ½ ‖w‖² is largest at
    w = μ − f. So μ is all there is of a critic: the mean of the noisy aggregates since the lower layers have changed.
    Its state is kept with a run's checkpoint.

    Args:
        lower: The lower layers; they keep a state of their own.
    """

    mean: Float[Tensor, "class feature"]
    number: Int[Tensor, ""]
    counts: Float[Tensor, " class"]
    seen: Int[Tensor, ""]

    def __init__(self, lower: LowerLayers) -> None:
        super().__init__()
        self.lower = lower
        like = lower.rows.weight.detach()
        self.register_buffer("mean", torch.zeros_like(like))
        self.register_buffer("counts", torch.zeros_like(like[:, 0]))
        for name in ("number", "seen"):
            self.register_buffer(name, torch.tensor(0))

    def saw(self, aggregate: Float[Tensor, "class feature"]) -> None:
        """Take a noisy aggregate, divided by the images that a batch has on average."""
        self.number += 1
        self.seen += 1
        self.mean.lerp_(aggregate, 1 / int(self.number))
        self.counts.lerp_(aggregate[:, -1] / _OF_COUNTS, 1 / int(self.seen))

    def forget(self) -> None:
        """Begin anew, for other lower layers."""
        self.number.zero_()

    @property
    def shares(self) -> Float64[Tensor, " class"]:
        """How frequent each class is, by the noisy counts of all aggregates."""
        shares = self.counts.double().clamp_min(_RAREST / len(self.counts))
        return shares / shares.sum()

    def distance(
        self, images: Float[Tensor, "images channel height width"], classes: Int[Tensor, " class"]
    ) -> Float[Tensor, ""]:
        """Return how well generated images of some classes, as many of each, are told apart, but for a constant.

        Features have length one. So m of them have ‖f‖² = 1/m + (1 − 1/m) f·f' on average, with f' of other images: by
        f·f' alone nothing draws images of a class together.
        """
        made, shares = self._means(images, classes), self.shares[classes].float()
        number = len(images) / len(classes)
        squares = made.square().sum(1) * number / (number - 1)
        distance: Tensor = len(self.counts) * (shares * squares - 2 * (self.mean[classes] * made).sum(1)).mean()
        return distance

    @torch.no_grad()
    def point(self, images: Float[Tensor, "images channel height width"], classes: Int[Tensor, " class"]) -> None:
        """Let the functions on the lower layers point from generated images to private ones, with length one."""
        away = self.mean[classes] - self.shares[classes, None].float() * self._means(images, classes)
        self.lower.rows.weight.zero_()[classes] = normalize(away)

    def _means(
        self, images: Float[Tensor, "images channel height width"], classes: Int[Tensor, " class"]
    ) -> Float[Tensor, "class feature"]:
        features = self.lower.features(images)
        return features.view(len(classes), -1, features.shape[1]).mean(1)
