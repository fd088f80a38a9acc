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
    centres_along: Float64[Tensor, "centre kept"]

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
        self._place_centres()
        self.register_load_state_dict_post_hook(lambda mixture, _: mixture._place_centres())  # type: ignore[no-untyped-call]  # torch lacks its types

    def _place_centres(self) -> None:
        """Compute what follows from the tensors that a state has: each centre's coordinates."""
        self.register_buffer("centres_along", self._along(self.centres, self.classes), persistent=False)

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
        """Return the posterior mean E[x₀ | x₀ + σ n = x, label]."""
        x, variance = x.double(), sigma.double()[:, None] ** 2
        unlabelled = labels == self.num_classes
        if not unlabelled.any():
            return self._of_class(x, variance, labels)[1]
        means = torch.empty_like(x)
        means[~unlabelled] = self._of_class(x[~unlabelled], variance[~unlabelled], labels[~unlabelled])[1]
        x, variance = x[unlabelled], variance[unlabelled]
        evidence, of_each = zip(
            *(self._of_class(x, variance, torch.full_like(labels[unlabelled], c)) for c in range(len(self.axes))),
            strict=True,
        )
        means[unlabelled] = torch.einsum("cb,cbd->bd", torch.stack(evidence).softmax(0), torch.stack(of_each))
        return means

    def filtered(
        self, x: Float64[Tensor, "batch dimension"], gain: Gain, classes: Int[Tensor, " batch"]
    ) -> Float64[Tensor, "batch dimension"]:
        """Return g(Σ_c) x, where `gain` is g on the eigenvalues, and c the class of each image."""
        of_floor = gain(self.floor)
        return of_floor * x + self._image(self._along(x, classes) * (gain(self._values(classes)) - of_floor), classes)

    def mean(self, labels: Int[Tensor, " batch"]) -> Float64[Tensor, "batch dimension"]:
        """Return E[x₀ | label]."""
        return self._of_classes(self.log_weights.expand(len(labels), -1), labels).softmax(1) @ self.centres

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
        weights = self._of_classes(self.log_weights.expand(len(labels), -1), labels).softmax(1)
        chosen = torch.multinomial(weights, 1, generator=generator)[:, 0]
        noise = torch.randn(
            (len(labels), self.centres.shape[1]), generator=generator, dtype=torch.float64, device=labels.device
        )
        return self.centres[chosen] + self.filtered(noise, torch.sqrt, self.classes[chosen])

    def _of_class(
        self,
        x: Float64[Tensor, "batch dimension"],
        variance: Float64[Tensor, "batch 1"],
        classes: Int[Tensor, " batch"],
    ) -> tuple[Float64[Tensor, " batch"], Float64[Tensor, "batch dimension"]]:
        """Return ln p(x, class), but for what is the same for all classes, and the posterior mean within the class.

        The mean is each centre's Wiener filter, weighted by how well the centre explains x: by the softmax of
        ln π_j + ln N(x; m_j, Σ_c + σ² I). Since the centres of a class share Σ_c, their weighted filters are one filter
        about the weighted centre.
        """
        along, values = self._along(x, classes), self._values(classes)
        across = 1 / (self.floor + variance)
        inside = 1 / (values + variance) - across
        product = (inside * along) @ self.centres_along.T + across * (x @ self.centres.T)
        squared = inside @ (self.centres_along**2).T + across * (self.centres**2).sum(1)
        logits = self._of_classes(self.log_weights + product - squared / 2, classes)
        evidence = logits.logsumexp(1) - (inside * along**2 + (values + variance).log()).sum(1) / 2
        weights = logits.softmax(1)
        centre, of_floor = weights @ self.centres, self.floor * across
        beyond = (along - weights @ self.centres_along) * (values / (values + variance) - of_floor)
        return evidence, centre + of_floor * (x - centre) + self._image(beyond, classes)

    def _along(
        self, x: Float64[Tensor, "batch dimension"], classes: Int[Tensor, " batch"]
    ) -> Float64[Tensor, "batch kept"]:
        """Return the coordinates of images along the eigenvectors of their classes that lie in V."""
        along, lead = x @ self.vectors, self.axes.shape[2]
        return torch.cat([torch.einsum("bk,bkl->bl", along[:, :lead], self.axes[classes]), along[:, lead:]], dim=1)

    def _image(
        self, along: Float64[Tensor, "batch kept"], classes: Int[Tensor, " batch"]
    ) -> Float64[Tensor, "batch dimension"]:
        """Return the images of these coordinates."""
        lead = self.axes.shape[2]
        turned = torch.einsum("bl,bkl->bk", along[:, :lead], self.axes[classes])
        return torch.cat([turned, along[:, lead:]], dim=1) @ self.vectors.T

    def _values(self, classes: Int[Tensor, " batch"]) -> Float64[Tensor, "batch kept"]:
        """Return the eigenvalues in the order of `_along`."""
        of_class = self.class_variances[classes]
        return torch.cat([of_class, self.variances.expand(len(classes), -1)], dim=1)

    def _of_classes(self, logits: Float64[Tensor, "batch centre"], labels: Int[Tensor, " batch"]) -> Tensor:
        """Leave each image the centres of its class, and one of the null class all of them."""
        others = (self.classes != labels[:, None]) & (labels[:, None] != self.num_classes)
        return logits.masked_fill(others, -math.inf)
