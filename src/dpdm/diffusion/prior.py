"""A mixture of Gaussians: what group means, counts and second moments tell of images.

Its posterior mean is known in closed form, so it is a denoiser before any network is trained.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Float64, Int, Int64
from torch import Tensor, nn
from torch.nn.functional import one_hot

Gain = Callable[[Float64[Tensor, "..."]], Float64[Tensor, "..."]]
"""A function of variances, one number for each."""


class _Ready(NamedTuple):
    """A mixture in other coordinates: on the axes of each class in turn, and then on the rest of V.

    `turn` leads from V's first columns to the axes of all classes. `values` are the variances, and `members` says which
    class a centre is of. `centres` are the centres, on their own class's axes.
    """

    turn: Float64[Tensor, "lead axis_of_class"]
    values: Float64[Tensor, " axis"]
    members: Float64[Tensor, "centre class"]
    centres: Float64[Tensor, "centre axis"]


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
        self._ready: _Ready | None = None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "GaussianMixture":
        """Move or convert the tensors, as `nn.Module` does, and forget what followed from those before."""
        self._ready = None
        moved: GaussianMixture = super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch lacks its types
        return moved

    def _load_from_state_dict(self, *arguments: Any) -> None:  # noqa: ANN401 (torch's)
        self._ready, classes = None, self.classes.clone()
        super()._load_from_state_dict(*arguments)
        if self.classes.device.type != "meta" and not torch.equal(classes, self.classes):
            raise RuntimeError("centres of other classes")

    @property
    def ready(self) -> "_Ready":
        """What follows from the tensors, made when it is first needed: whoever loads them may set them one by one."""
        if self._ready is None:
            classes, lead, _ = self.axes.shape
            turn = self.axes.transpose(0, 1).reshape(lead, classes * lead)
            members = one_hot(self.classes, classes).double()
            along = self.centres @ self.vectors
            own = (along[:, :lead] @ turn) * members.repeat_interleave(lead, dim=1)
            self._ready = _Ready(
                turn=turn,
                values=torch.cat([self.class_variances.flatten(), self.variances]),
                members=members,
                centres=torch.cat([own, along[:, lead:]], dim=1),
            )
        return self._ready

    @staticmethod
    def placeholder(
        dimensions: int, *, num_classes: int, centres: int = 1, kept: int | None = None, lead: int = 60
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

    def forward(
        self,
        x: Float[Tensor, "batch dimension"],
        sigma: Float[Tensor, " batch"],
        labels: Int[Tensor, " batch"],
    ) -> Float64[Tensor, "batch dimension"]:
        """Return the posterior mean E[x₀ | x₀ + σ n = x, label]."""
        # Each centre's Wiener filter, weighted by how well it explains x: by the softmax of
        # ln π_j + ln N(x; m_j, Σ_c + σ² I), without what is the same for all centres. Those of a class share Σ_c, so
        # that their filters are one about their weighted mean. No step depends on values: `vmap` passes through.
        x, variance = x.double(), sigma.double()[:, None] ** 2
        along, across = self._along(x), 1 / (self.floor + variance)
        total = self.ready.values + variance
        inside = 1 / total - across
        product = (inside * along) @ self.ready.centres.T + across * (x @ self.centres.T)
        squared = inside @ (self.ready.centres**2).T + across * (self.centres**2).sum(1)
        # What a class's own variances make of it: its determinant, and x's length by them.
        classes, lead, _ = self.axes.shape
        of_class = (inside * along**2 + total.log())[:, : classes * lead].reshape(-1, classes, lead).sum(2)
        logits = self.log_weights + product - (squared + of_class @ self.ready.members.T) / 2
        weights = self._of_class(logits, labels).softmax(1)
        centre, of_floor = weights @ self.centres, self.floor * across
        deviation = along * self._share(weights @ self.ready.members) - weights @ self.ready.centres
        return centre + of_floor * (x - centre) + self._image(deviation * (self.ready.values / total - of_floor))

    def filtered(
        self, x: Float64[Tensor, "batch dimension"], gain: Gain, classes: Int[Tensor, " batch"]
    ) -> Float64[Tensor, "batch dimension"]:
        """Return g(Σ_c) x, where `gain` is g on the eigenvalues, and c the class of each image."""
        own = self._share(one_hot(classes, len(self.axes)).double())
        of_floor = gain(self.floor)
        return of_floor * x + self._image(self._along(x) * own * (gain(self.ready.values) - of_floor))

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
        share = self.class_shares
        of_each = left(self.class_variances.flatten()) * share.repeat_interleave(self.class_variances.shape[1])
        shared: Tensor = left(self.variances).sum(-1) + (dimensions - kept) * left(self.floor)[..., 0]
        return (of_each.sum(-1) + shared) / dimensions

    @property
    def class_shares(self) -> Float64[Tensor, " class"]:
        """How frequent each class is, as far as the weights say."""
        return self.log_weights.softmax(0) @ one_hot(self.classes, len(self.axes)).double()

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

    def _along(self, x: Float64[Tensor, "batch dimension"]) -> Float64[Tensor, "batch axis"]:
        """Return the coordinates of images on the axes of each class in turn, and then on the rest of V."""
        along, lead = x @ self.vectors, self.axes.shape[2]
        return torch.cat([along[:, :lead] @ self.ready.turn, along[:, lead:]], dim=1)

    def _image(self, along: Float64[Tensor, "batch axis"]) -> Float64[Tensor, "batch dimension"]:
        """Return the sum of the directions that these coordinates stand for."""
        of_classes = self.ready.turn.shape[1]
        return torch.cat([along[:, :of_classes] @ self.ready.turn.T, along[:, of_classes:]], dim=1) @ self.vectors.T

    def _share(self, of_class: Float64[Tensor, "batch class"]) -> Float64[Tensor, "batch axis"]:
        """Return, for each axis, the part of its class; the rest of V is everybody's."""
        lead, rest = self.axes.shape[2], self.variances.shape[0]
        everybodys = torch.ones_like(of_class[:, :1]).expand(-1, rest)
        return torch.cat([of_class.repeat_interleave(lead, dim=1), everybodys], dim=1)

    def _of_class(
        self, logits: Float64[Tensor, "batch centre"], labels: Int[Tensor, " batch"]
    ) -> Float64[Tensor, "batch centre"]:
        """Leave each image the centres of its class, and one of the null class all of them."""
        others = (self.classes != labels[:, None]) & (labels[:, None] != self.num_classes)
        return logits.masked_fill(others, -math.inf)
