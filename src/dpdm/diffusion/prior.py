"""A mixture of Gaussians: what group means, counts and second moments tell of images.

Its posterior mean is known in closed form, so it is a denoiser before any network is trained.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float, Float64, Int, Int64
from torch import Tensor, nn
from torch.nn.functional import one_hot

Gain = Callable[[Float64[Tensor, "..."]], Float64[Tensor, "..."]]
"""A function of variances, one number for each."""


class GaussianMixture(nn.Module):
    """p(x₀, centre j) = π_j N(x₀; m_j, Σ_c), with one covariance for all centres of a class c.

    Σ_c = V blockdiag(A_c diag(u_c) A_cᵀ, diag(v)) Vᵀ + floor (I − V Vᵀ): in the first few columns of V a class has axes
    and variances of its own; the rest is shared. An image of class c comes from the centres of c; one of the null
    class, whose index is the number of classes, from all.

    Args:
        centres: m_j, flattened images.
        classes: The class of each centre.
        weights: π_j, the probability of centre and class together; positive, need not sum to one.
        vectors: V, orthonormal columns.
        axes: A_c, orthonormal, in the coordinates of the first columns of V.
        class_variances: u_c, the variance of class c along each of its axes, above zero.
        variances: v, the variance along each further column, above zero.
        floor: The variance along every direction that is orthogonal to V, above zero.
        num_classes: Number of classes; without labels it is 0, and all centres are of the null class 0.
    """

    centres: Float64[Tensor, "centre dimension"]
    classes: Int64[Tensor, " centre"]
    log_weights: Float64[Tensor, " centre"]
    vectors: Float64[Tensor, "dimension kept"]
    axes: Float64[Tensor, "class lead lead"]
    class_variances: Float64[Tensor, "class lead"]
    variances: Float64[Tensor, " rest"]
    floor: Float64[Tensor, " 1"]

    def __init__(
        self,
        *,
        centres: Float[Tensor, "centre dimension"],
        classes: Int[Tensor, " centre"],
        weights: Float[Tensor, " centre"],
        vectors: Float[Tensor, "dimension kept"],
        axes: Float[Tensor, "class lead lead"],
        class_variances: Float[Tensor, "class lead"],
        variances: Float[Tensor, " rest"],
        floor: float,
        num_classes: int,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.register_buffer("centres", centres.double())
        self.register_buffer("classes", classes.long())
        self.register_buffer("log_weights", weights.double().log())
        self.register_buffer("vectors", vectors.double())
        self.register_buffer("axes", axes.double())
        self.register_buffer("class_variances", class_variances.double())
        self.register_buffer("variances", variances.double())
        self.register_buffer("floor", torch.tensor([floor], dtype=torch.float64))

    @staticmethod
    def placeholder(
        dimensions: int, *, num_classes: int, centres: int = 1, kept: int | None = None, lead: int = 30
    ) -> "GaussianMixture":
        """Return a mixture of these sizes that knows nothing: to be loaded into, or to measure time with."""
        classes = torch.arange(max(1, num_classes)).repeat_interleave(centres)
        kept = min(dimensions, 1024) if kept is None else kept
        lead = min(kept, lead)
        return GaussianMixture(
            centres=torch.zeros(len(classes), dimensions),
            classes=classes,
            weights=torch.ones(len(classes)),
            vectors=torch.eye(dimensions, kept),
            axes=torch.eye(lead).expand(max(1, num_classes), -1, -1).clone(),
            class_variances=torch.ones(max(1, num_classes), lead),
            variances=torch.ones(kept - lead),
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
        mixture = GaussianMixture.placeholder(
            dimensions, num_classes=num_classes, centres=per_class, kept=kept, lead=tensors["axes"].shape[2]
        )
        mixture.load_state_dict(tensors)
        return mixture

    def forward(
        self,
        x: Float[Tensor, "batch dimension"],
        sigma: Float[Tensor, " batch"],
        labels: Int[Tensor, " batch"],
    ) -> Float64[Tensor, "batch dimension"]:
        """Return the posterior mean E[x₀ | x₀ + σ n = x, label].

        It is each centre's Wiener filter, weighted by how well the centre explains x. Since the centres of a class
        share Σ_c, their weighted filters are one filter about the class's weighted centre.
        """
        x, variance = x.double(), sigma.double()[:, None] ** 2
        along, centres_along = x @ self.vectors, self.centres @ self.vectors
        lead = self.axes.shape[2]
        # On the axes of classes: x on those of each, (batch, class, lead); a centre on its own, (centre, lead).
        on_axes = torch.einsum("bk,ckl->bcl", along[:, :lead], self.axes)
        centres_on_axes = torch.einsum("jk,jkl->jl", centres_along[:, :lead], self.axes[self.classes])
        along, centres_along = along[:, lead:], centres_along[:, lead:]
        weights = self._responsibilities(x, on_axes, centres_on_axes, along, centres_along, variance, labels)
        centre = weights @ self.centres
        of_floor = self.floor / (self.floor + variance)
        beyond = (along - weights @ centres_along) * (self.variances / (self.variances + variance) - of_floor)
        members = one_hot(self.classes, len(self.axes)).double()
        deviation = (weights @ members)[:, :, None] * on_axes
        deviation = deviation - torch.einsum("bj,jc,jl->bcl", weights, members, centres_on_axes)
        gain = self.class_variances / (self.class_variances + variance[:, :, None]) - of_floor[:, :, None]
        turned = torch.einsum("bcl,ckl->bk", deviation * gain, self.axes)
        return centre + of_floor * (x - centre) + torch.cat([turned, beyond], dim=1) @ self.vectors.T

    def filtered(
        self, x: Float64[Tensor, "batch dimension"], gain: Gain, classes: Int[Tensor, " batch"]
    ) -> Float64[Tensor, "batch dimension"]:
        """Return g(Σ_c) x, where `gain` is g on the eigenvalues, and c the class of each image."""
        lead, of_floor = self.axes.shape[2], gain(self.floor)
        along, axes = x @ self.vectors, self.axes[classes]
        on_axes = torch.einsum("bk,bkl->bl", along[:, :lead], axes)
        turned = torch.einsum("bl,bkl->bk", on_axes * (gain(self.class_variances[classes]) - of_floor), axes)
        beyond = along[:, lead:] * (gain(self.variances) - of_floor)
        return of_floor * x + torch.cat([turned, beyond], dim=1) @ self.vectors.T

    def mean(self, labels: Int[Tensor, " batch"]) -> Float64[Tensor, "batch dimension"]:
        """Return E[x₀ | label]."""
        return self._of_class(self.log_weights.expand(len(labels), -1), labels).softmax(1) @ self.centres

    def mean_variance(self, sigma: Float[Tensor, "*shape"]) -> Float64[Tensor, "*shape"]:
        """Return the mean over pixels of x₀'s variance about one centre's Wiener filter: tr(σ² Σ (Σ + σ² I)⁻¹) / d.

        Σ is that of a class that is drawn by the weights.
        """
        variance = sigma.double()[..., None] ** 2

        def left(v: Float64[Tensor, " values"]) -> Float64[Tensor, "*shape values"]:
            return variance * v / (variance + v)

        dimensions, kept = self.vectors.shape
        share = self.log_weights.softmax(0) @ one_hot(self.classes, len(self.axes)).double()
        of_each = left(self.class_variances.flatten()) * share.repeat_interleave(self.class_variances.shape[1])
        shared: Tensor = left(self.variances).sum(-1) + (dimensions - kept) * left(self.floor)[..., 0]
        return (of_each.sum(-1) + shared) / dimensions

    def sample(
        self, labels: Int[Tensor, " batch"], *, generator: torch.Generator
    ) -> Float64[Tensor, "batch dimension"]:
        """Return flattened images of these classes, drawn from the mixture itself."""
        weights = self._of_class(self.log_weights.expand(len(labels), -1), labels).softmax(1)
        chosen = torch.multinomial(weights, 1, generator=generator)[:, 0]
        noise = torch.randn(
            (len(labels), self.centres.shape[1]), generator=generator, dtype=torch.float64, device=labels.device
        )
        return self.centres[chosen] + self.filtered(noise, torch.sqrt, self.classes[chosen])

    def _responsibilities(
        self,
        x: Tensor,
        on_axes: Tensor,
        centres_on_axes: Tensor,
        along: Tensor,
        centres_along: Tensor,
        variance: Tensor,
        labels: Tensor,
    ) -> Float64[Tensor, "batch centre"]:
        """Return the probability of each centre given x: softmax of ln π_j + ln N(x; m_j, Σ_c + σ² I).

        Without what is the same for all centres, and from the coordinates of x and of the centres.
        """
        across = 1 / (self.floor + variance)
        inside = 1 / (self.variances + variance) - across
        product = (along * inside) @ centres_along.T + across * (x @ self.centres.T)
        squared = inside @ (centres_along**2).T + across * (self.centres**2).sum(1)
        # What a class's own variances make of it: its determinant, and x's length by them.
        total = self.class_variances + variance[:, :, None]
        inside = 1 / total - across[:, :, None]
        of_class = (inside * on_axes**2 + total.log()).sum(2)[:, self.classes]
        product = product + torch.einsum("bjl,jl->bj", (on_axes * inside)[:, self.classes], centres_on_axes)
        squared = squared + torch.einsum("bjl,jl->bj", inside[:, self.classes], centres_on_axes**2)
        return self._of_class(self.log_weights + product - (squared + of_class) / 2, labels).softmax(1)

    def _of_class(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Leave each image the centres of its class."""
        others = (self.classes != labels[:, None]) & (labels[:, None] != self.num_classes)
        return logits.masked_fill(others, -math.inf)
