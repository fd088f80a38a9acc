"""The methods by the names that settings and `--method` call them by."""

from dpdm.methods.aggregated_embeddings import AggregatedEmbeddings
from dpdm.methods.diffusion import Diffusion
from dpdm.methods.evolution import Evolution
from dpdm.methods.interface import Method
from dpdm.methods.prior import PriorAlone

METHODS: dict[str, type[Method]] = {
    method.kind: method for method in (Diffusion, PriorAlone, Evolution, AggregatedEmbeddings)
}
