"""A mixture of Gaussians: what group means, counts and second moments tell of images.

Its posterior mean is known in closed form, so it is a denoiser before any network is trained.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float, Float64, Int, Int64
from torch import Tensor, nn

Gain = Callable[[Float64[Tensor, "..."]], Float64[Tensor, "..."]]
"""A function of variances, one number for each."""


class GaussianMixture(nn.Module):
    """p(x₀, centre j) = π_j N(x₀; m_j, Σ), with one covariance Σ = V diag(v) Vᵀ + floor (I − V Vᵀ) for all centres.

    Each centre has a class. An image of class c comes from the centres of c; one of the null class, whose index is the
    number of classes, from all.

    Args:
        centres: m_j, flattened images.
        classes: The class of each centre.
        weights: π_j, the probability of centre and class together; positive, need not sum to one.
        vectors: V, orthonormal columns.
        variances: v, the variance along each column, above zero.
        floor: The variance along every direction that is orthogonal to V, above zero.
        num_classes: Number of classes; without labels it is 0, and all centres are of the null class 0.
    """

    centres: Float64[Tensor, "centre dimension"]
    classes: Int64[Tensor, " centre"]
    log_weights: Float64[Tensor, " centre"]
    vectors: Float64[Tensor, "dimension kept"]
    variances: Float64[Tensor, " kept"]
    floor: Float64[Tensor, " 1"]

    def __init__(
        self,
        *,
        centres: Float[Tensor, "centre dimension"],
        classes: Int[Tensor, " centre"],
        weights: Float[Tensor, " centre"],
        vectors: Float[Tensor, "dimension kept"],
        variances: Float[Tensor, " kept"],
        floor: float,
        num_classes: int,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.register_buffer("centres", centres.double())
        self.register_buffer("classes", classes.long())
        self.register_buffer("log_weights", weights.double().log())
        self.register_buffer("vectors", vectors.double())
        self.register_buffer("variances", variances.double())
        self.register_buffer("floor", torch.tensor([floor], dtype=torch.float64))

    @staticmethod
    def placeholder(
        dimensions: int, *, num_classes: int, centres: int = 1, kept: int | None = None
    ) -> "GaussianMixture":
        """Return a mixture of these sizes that knows nothing: to be loaded into, or to measure time with."""
        classes = torch.arange(max(1, num_classes)).repeat_interleave(centres)
        kept = min(dimensions, 1024) if kept is None else kept
        return GaussianMixture(
            centres=torch.zeros(len(classes), dimensions),
            classes=classes,
            weights=torch.ones(len(classes)),
            vectors=torch.eye(dimensions, kept),
            variances=torch.ones(kept),
            floor=1.0,
            num_classes=num_classes,
        )

    @staticmethod
    def from_tensors(tensors: dict[str, Tensor], *, num_classes: int) -> "GaussianMixture":
        """Return the mixture whose `state_dict` these tensors are.

        Raises:
            KeyError: A tensor is missing.
            RuntimeError: Their shapes do not fit together.
        """
        dimensions, kept = tensors["vectors"].shape
        per_class = len(tensors["centres"]) // max(1, num_classes)
        mixture = GaussianMixture.placeholder(dimensions, num_classes=num_classes, centres=per_class, kept=kept)
        mixture.load_state_dict(tensors)
        return mixture

    def forward(
        self,
        x: Float[Tensor, "batch dimension"],
        sigma: Float[Tensor, " batch"],
        labels: Int[Tensor, " batch"],
    ) -> Float64[Tensor, "batch dimension"]:
        """Return the posterior mean E[x₀ | x₀ + σ n = x, label].

        It is each centre's Wiener filter, weighted by how well the centre explains x. Since Σ is shared, the weighted
        filters are one filter about the weighted centre.
        """
        x, variance = x.double(), sigma.double()[:, None] ** 2
        along, centres_along = x @ self.vectors, self.centres @ self.vectors
        weights = self._responsibilities(x, along, centres_along, variance, labels)
        centre = weights @ self.centres
        of_floor = self.floor / (self.floor + variance)
        beyond = (along - weights @ centres_along) * (self.variances / (self.variances + variance) - of_floor)
        return centre + of_floor * (x - centre) + beyond @ self.vectors.T

    def filtered(self, x: Float64[Tensor, "batch dimension"], gain: Gain) -> Float64[Tensor, "batch dimension"]:
        """Return g(Σ) x, where `gain` is g on the eigenvalues."""
        of_floor = gain(self.floor)
        return of_floor * x + ((x @ self.vectors) * (gain(self.variances) - of_floor)) @ self.vectors.T

    def mean(self, labels: Int[Tensor, " batch"]) -> Float64[Tensor, "batch dimension"]:
        """Return E[x₀ | label]."""
        return self._of_class(self.log_weights.expand(len(labels), -1), labels).softmax(1) @ self.centres

    def mean_variance(self, sigma: Float[Tensor, "*shape"]) -> Float64[Tensor, "*shape"]:
        """Return the mean over pixels of x₀'s variance about one centre's Wiener filter: tr(σ² Σ (Σ + σ² I)⁻¹) / d."""
        variance = sigma.double()[..., None] ** 2

        def left(v: Float64[Tensor, " values"]) -> Float64[Tensor, "*shape values"]:
            return variance * v / (variance + v)

        dimensions, kept = self.vectors.shape
        return (left(self.variances).sum(-1) + (dimensions - kept) * left(self.floor)[..., 0]) / dimensions

    def sample(
        self, labels: Int[Tensor, " batch"], *, generator: torch.Generator
    ) -> Float64[Tensor, "batch dimension"]:
        """Return flattened images of these classes, drawn from the mixture itself."""
        weights = self._of_class(self.log_weights.expand(len(labels), -1), labels).softmax(1)
        chosen = torch.multinomial(weights, 1, generator=generator)[:, 0]
        noise = torch.randn(
            (len(labels), self.centres.shape[1]), generator=generator, dtype=torch.float64, device=labels.device
        )
        return self.centres[chosen] + self.filtered(noise, torch.sqrt)

    def _responsibilities(
        self, x: Tensor, along: Tensor, centres_along: Tensor, variance: Tensor, labels: Tensor
    ) -> Float64[Tensor, "batch centre"]:
        """Return the probability of each centre given x: softmax of ln π_j − (x − m_j)ᵀ (Σ + σ² I)⁻¹ (x − m_j) / 2.

        Without what is the same for all centres, and from the coordinates along V of x and of the centres.
        """
        across = 1 / (self.floor + variance)
        inside = 1 / (self.variances + variance) - across
        product = (along * inside) @ centres_along.T + across * (x @ self.centres.T)
        squared = inside @ (centres_along**2).T + across * (self.centres**2).sum(1)
        return self._of_class(self.log_weights + product - squared / 2, labels).softmax(1)

    def _of_class(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Leave each image the centres of its class."""
        others = (self.classes != labels[:, None]) & (labels[:, None] != self.num_classes)
        return logits.masked_fill(others, -math.inf)
