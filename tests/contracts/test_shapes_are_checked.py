"""Calls of the package are checked in tests against the shapes that its hints state (`tests/shapes.py`)."""

import ast
from pathlib import Path

import jaxtyping
import numpy as np
import pytest
import torch
from jaxtyping import TypeCheckError
from torch.func import vmap

import dpdm
from dpdm.diffusion import EDM, DenoisingLoss, PreconditionedDenoiser
from dpdm.networks import MLP

X, SIGMA, LABELS = torch.zeros(2, 1, 8, 8), torch.ones(2), torch.zeros(2, dtype=torch.long)
NETWORK = MLP(width=8, blocks=1).build((1, 8, 8), num_classes=1)


class LosesAnImage(EDM):
    def denoise(self, network, x, sigma, labels):
        return x[1:]


def test_right_shapes_pass():
    assert NETWORK(X, SIGMA, LABELS).shape == X.shape
    assert PreconditionedDenoiser(NETWORK, EDM())(X, SIGMA, LABELS).shape == X.shape
    assert DenoisingLoss(noise_multiplicity=3).choose(np.ones(2, np.int64), random_bytes=bytes).shape == (2, 3)


# Without the hook each of these passes, or fails further in: what is flattened or broadcast tells no shape.
@pytest.mark.parametrize(
    "call",
    [
        pytest.param(lambda: NETWORK(X.flatten(1), SIGMA, LABELS), id="number of axes"),
        pytest.param(lambda: EDM().denoise(NETWORK, X, SIGMA[:1], LABELS), id="batches of two sizes"),
        pytest.param(lambda: NETWORK(X, SIGMA, LABELS.float()), id="type of numbers"),
        pytest.param(lambda: NETWORK(X.numpy(), SIGMA, LABELS), id="kind of array"),
        pytest.param(lambda: PreconditionedDenoiser(NETWORK, LosesAnImage())(X, SIGMA, LABELS), id="result"),
        pytest.param(
            lambda: DenoisingLoss().choose(np.ones((2, 1), np.int64), random_bytes=bytes), id="NumPy, in a method"
        ),
    ],
)
def test_wrong_shapes_are_errors(call):
    with pytest.raises(TypeCheckError):
        call()


def test_what_is_mapped_over_a_batch_is_checked_for_one_example():
    weights = vmap(EDM().loss_weight)(torch.ones(3, 2))
    assert weights.shape == (3, 2)
    with pytest.raises(TypeCheckError):
        vmap(NETWORK)(X, SIGMA, LABELS)


FREE = {
    "data/dataset.py: group_indices": "names of groups come as a person has them; an InputError says what is wrong",
    "runs/synthesizer.py: Synthesizer.fit": "as in `group_indices`",
}
"""Public functions that take an array without a shape, and why.

The aliases `Images` and `Labels` state none either: they are what a person hands in, and `as_images` refuses the rest.
"""

PACKAGE = Path(dpdm.__file__).parent
ARRAYS = {"Tensor", "ndarray", "NDArray"}


def as_code(hint):
    """Return a hint that may be written as a word."""
    return ast.parse(hint.value) if isinstance(hint, ast.Constant) and isinstance(hint.value, str) else hint


def is_bare(hint):
    """Tell whether a hint has an array outside of jaxtyping's types."""
    if isinstance(hint, ast.Name | ast.Attribute):
        return (hint.id if isinstance(hint, ast.Name) else hint.attr) in ARRAYS
    if isinstance(hint, ast.Subscript) and isinstance(hint.value, ast.Name) and hasattr(jaxtyping, hint.value.id):
        return False
    return any(map(is_bare, ast.iter_child_nodes(hint)))


def public_functions(node, before=""):
    """Yield functions and methods by their names, without those inside functions."""
    for part in node.body:
        if isinstance(part, ast.FunctionDef | ast.ClassDef) and (part.name[0] != "_" or part.name[:2] == "__"):
            if isinstance(part, ast.ClassDef):
                yield from public_functions(part, f"{before}{part.name}.")
            else:
                yield before + part.name, part


def test_every_public_function_states_the_shapes_of_its_arrays():
    bare = set()
    for path in PACKAGE.rglob("*.py"):
        for name, function in public_functions(ast.parse(path.read_text(encoding="utf-8"))):
            arguments = [part for part in ast.walk(function.args) if isinstance(part, ast.arg)]
            hints = filter(None, [*(part.annotation for part in arguments), function.returns])
            if any(is_bare(hint) for hint in map(as_code, hints)):
                bare.add(f"{path.relative_to(PACKAGE).as_posix()}: {name}")
    assert bare == set(FREE)
