"""The noise is Gaussian, of the accounted standard deviation, unpredictable, and never used twice.

Fresh entropy in each run of the tests: each statistical check fails by chance less than once in 10^5.
"""

import ast
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch

import dpdm.privacy
from dpdm.privacy import DPSGD, InsecureSeededEntropy, OperatingSystemEntropy
from dpdm.privacy.batch_selection import poisson
from dpdm.privacy.noise import gaussian

SIGNIFICANCE = 1e-5
PLAN = DPSGD(dataset_size=100, expected_batch_size=10, steps=60, noise_multiplier=4.0, delta=1e-3)


@pytest.fixture(scope="module")
def draws():
    return gaussian(2_000_000, std=2.5, random_bytes=OperatingSystemEntropy().stream("noise", 0)).numpy() / 2.5


def test_variance_is_one(draws):
    low, high = scipy.stats.chi2.ppf([SIGNIFICANCE / 2, 1 - SIGNIFICANCE / 2], len(draws)) / len(draws)
    assert low < np.square(draws).mean() < high


def test_mean_is_zero(draws):
    assert abs(draws.mean()) * np.sqrt(len(draws)) < scipy.stats.norm.isf(SIGNIFICANCE / 2)


@pytest.mark.parametrize("part", [slice(0, None, 8), slice(1, None, 8)], ids=["cosine", "sine"])
def test_distribution_is_normal(draws, part):
    assert scipy.stats.kstest(draws[part], "norm").pvalue > SIGNIFICANCE


def test_tail_is_normal(draws):
    assert 4.5 < np.abs(draws).max() < 7.5
    beyond = int((np.abs(draws) > 3).sum())
    assert scipy.stats.binomtest(beyond, len(draws), 2 * scipy.stats.norm.sf(3)).pvalue > SIGNIFICANCE


def test_neighbouring_coordinates_are_independent(draws):
    limit = scipy.stats.norm.isf(SIGNIFICANCE / 20)
    for transform in (lambda z: z, lambda z: (z**2 - 1) / np.sqrt(2)):  # pairs share a radius: squares would show it
        values = transform(draws)
        for lag in (1, 2, 3, 1 << 19):
            r = (values[lag:] * values[:-lag]).mean() * np.sqrt(len(values) - lag)
            assert abs(r) < limit * 1.1, lag


def test_radius_reaches_beyond_eight_standard_deviations():
    assert gaussian(2, std=1.0, random_bytes=bytes)[0] == pytest.approx(8.5717, abs=1e-3)


def test_every_bit_of_53_counts():
    words = np.array([5 << 11, 0], dtype=np.uint64)  # where 24-bit uniforms have but one value
    expected = np.sqrt(-2 * np.log(6 * 2.0**-53))
    assert gaussian(1, std=1.0, random_bytes=lambda count: words.tobytes()).item() == pytest.approx(expected, rel=1e-12)


def test_no_bytes_give_anything_but_a_finite_number():
    for byte in (b"\x00", b"\xff", b"\x80", b"\x7f"):
        assert gaussian(3, std=1.0, random_bytes=lambda count, b=byte: b * count).isfinite().all()


@pytest.mark.parametrize("number", [0, 1, 2, 7, (1 << 19) + 3])
def test_as_many_coordinates_as_asked_for(number):
    noise = gaussian(number, std=1.0, random_bytes=OperatingSystemEntropy().stream("noise", 0))
    assert noise.shape == (number,)
    assert noise.dtype == torch.float64
    assert len(torch.unique(noise)) == number


@pytest.mark.parametrize("earlier", [(), (7.0, 0.3)])
def test_released_noise_has_the_accounted_deviation(earlier):
    plan = DPSGD(
        dataset_size=100,
        expected_batch_size=10,
        steps=3,
        noise_multiplier=1.7,
        delta=1e-3,
        releases={f"sum {i}": s for i, s in enumerate(earlier)},
    )
    run = plan.start()
    zeros = torch.zeros(1_000_000, dtype=torch.float64)
    multipliers = [getattr(event, "noise_multiplier", None) for event in plan.events()]
    assert multipliers == [*earlier, 1.7]
    for multiplier in [*earlier, 1.7, 1.7, 1.7]:
        assert run._release(zeros, sensitivity=0.8).std().item() == pytest.approx(multiplier * 0.8, rel=5e-3)
    assert run.finished


def test_gradients_of_nobody_have_the_accounted_deviation():
    plan = DPSGD(dataset_size=100, expected_batch_size=10, steps=2, noise_multiplier=1.7, max_grad_norm=0.3, delta=1e-3)
    module = torch.nn.Linear(1000, 1000, bias=False)
    run = plan.start()
    for _ in range(2):
        run.backward(lambda module, batch: None, module, num_records=0, load=lambda indices, draws: ())
        assert module.weight.grad.std().item() == pytest.approx(1.7 * 0.3 / 10, rel=5e-3)


def test_steps_have_independent_noise():
    run = PLAN.start()
    zeros = torch.zeros(5000, dtype=torch.float64)
    noise = torch.stack([run._release(zeros, sensitivity=1.0) for _ in range(60)]).numpy() / 4.0
    limit = scipy.stats.norm.isf(SIGNIFICANCE / 20)
    for lag in (1, 2, 7):
        assert abs((noise[lag:] * noise[:-lag]).mean()) * np.sqrt(noise[lag:].size) < limit * 1.1
        assert abs((noise[:, lag:] * noise[:, :-lag]).mean()) * np.sqrt(noise[:, lag:].size) < limit * 1.1


def test_two_runs_of_one_plan_share_no_noise():
    zeros = torch.zeros(1000, dtype=torch.float64)
    first, second = (PLAN.start()._release(zeros, sensitivity=1.0) for _ in range(2))
    assert not (first == second).any()


def test_a_resumed_run_shares_no_noise(tmp_path):
    zeros = torch.zeros(1000, dtype=torch.float64)
    blocks = []
    for _ in range(3):
        run = PLAN.start(tmp_path / "journal")
        blocks.append(run._release(zeros, sensitivity=1.0))
        run.close()
    assert len(torch.unique(torch.cat(blocks))) == 3000


def test_seeds_of_other_generators_change_nothing():
    noise, selections = [], []
    for _ in range(2):
        torch.manual_seed(0)
        np.random.seed(0)
        noise.append(PLAN.start()._release(torch.zeros(100, dtype=torch.float64), sensitivity=1.0))
        selections.append(poisson(1000, sample_rate=0.5, random_bytes=OperatingSystemEntropy().stream("selection", 0)))
    assert not (noise[0] == noise[1]).any()
    assert selections[0].tolist() != selections[1].tolist()


def test_drawing_noise_leaves_other_generators_alone():
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    PLAN.start()._release(torch.zeros(100, dtype=torch.float64), sensitivity=1.0)
    assert torch.equal(torch.rand(3), expected)


def test_no_two_streams_of_the_operating_system_agree():
    entropy = OperatingSystemEntropy()
    assert len({entropy.stream("noise", 0)(32) for _ in range(50)}) == 50


def test_seeded_streams_differ_by_purpose_and_number_and_are_stamped():
    entropy = InsecureSeededEntropy(0)
    streams = {entropy.stream(purpose, n)(32) for purpose in ("selection", "noise", "diffusion") for n in range(20)}
    assert len(streams) == 60
    assert entropy.stream("noise", 1)(32) == InsecureSeededEntropy(0).stream("noise", 1)(32)
    assert InsecureSeededEntropy(1).stream("noise", 1)(32) != entropy.stream("noise", 1)(32)
    claim = PLAN.claim(entropy=entropy)
    assert claim["private"] is False
    assert claim["epsilon"] is None
    assert claim["epsilon_rdp"] is None
    assert "NOT PRIVATE" in claim["statement"]


FORK = """
import os, sys, torch
from dpdm.privacy import DPSGD
from dpdm.types import InputError
run = DPSGD(dataset_size=100, expected_batch_size=10, steps=60, noise_multiplier=4.0, delta=1e-3).start()
zeros = torch.zeros(8, dtype=torch.float64)
run._release(zeros, sensitivity=1.0)
if os.fork() == 0:
    try:
        run._release(zeros, sensitivity=1.0)
    except InputError as error:
        os._exit(42 if "belongs to the process that started it" in str(error) else 1)
    os._exit(0)
status = os.waitstatus_to_exitcode(os.wait()[1])
run._release(zeros, sensitivity=1.0)
print("refused" if status == 42 else "released")
"""


def test_a_forked_process_cannot_release_what_its_parent_reserved():
    result = subprocess.run([sys.executable, "-c", FORK], capture_output=True, text=True, timeout=120, check=False)
    assert result.stdout.strip() == "refused", result.stderr


FORBIDDEN_MODULES = {"random", "secrets"}
FORBIDDEN_IN_TORCH = {"normal", "bernoulli", "multinomial", "poisson", "manual_seed", "seed", "Generator", "random"}
FORBIDDEN_METHODS = {"normal_", "uniform_", "bernoulli_", "exponential_", "random_"}


def other_generators(source: str) -> list[str]:
    """Return the expressions in `source` that draw from any generator but `Entropy`."""
    found = []
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                found += [n.name for n in names if n.name.split(".")[0] in FORBIDDEN_MODULES]
            case ast.ImportFrom(module=module, names=names):
                root, _, rest = (module or "").partition(".")
                if root in FORBIDDEN_MODULES or rest.split(".")[0] in ("random", "distributions"):
                    found.append(module)
                found += [n.name for n in names if root in ("torch", "numpy") and is_draw(n.name)]
            case ast.Attribute(value=ast.Name(id="torch" | "np" | "numpy"), attr=name) if is_draw(name):
                found.append(ast.unparse(node))
            case ast.Attribute(attr=name) if name in FORBIDDEN_METHODS:
                found.append(ast.unparse(node))
    return found


def is_draw(name: str) -> bool:
    return name.startswith("rand") or name in FORBIDDEN_IN_TORCH


@pytest.mark.parametrize("path", sorted(Path(dpdm.privacy.__file__).parent.glob("*.py")), ids=lambda path: path.name)
def test_the_privacy_core_draws_from_entropy_only(path):
    assert other_generators(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "source",
    [
        "import random",
        "from numpy.random import default_rng",
        "np.random.normal(0, 1)",
        "torch.randn(3)",
        "x = torch.rand_like(y)",
        "torch.normal(a, b)",
        "from torch import randn",
        "y.normal_()",
        "torch.Generator()",
    ],
)
def test_another_generator_would_be_found(source):
    assert other_generators(source)
