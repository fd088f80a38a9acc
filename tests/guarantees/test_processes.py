"""Several processes are one run: one batch over all records, noise once, the same parameters on each."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from dpdm.ledger import Ledger, Records
from dpdm.ledger.records import fingerprint
from dpdm.privacy.processes import Processes

pytestmark = pytest.mark.proof

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone"]

# What each process does: eight steps on blank or real records; writes what it saw into a file.
WORKER = """
import dataclasses, json, sys
import torch
from torch import distributed, nn
from dpdm.privacy import DPSGD
from dpdm.privacy.sums import BoundedSum
from dpdm.privacy.processes import Processes
from dpdm.runs.hardware import joined_processes
noise, records, clip = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
torch.set_num_threads(1)
with joined_processes() as processes:
    plan = DPSGD(
        dataset_size=40, expected_batch_size=20, steps=8, noise_multiplier=2.0, max_grad_norm=clip, delta=1e-3,
        noise=noise, releases={"first": 1e-6},
    )
    run = plan.start()
    mine = processes.shard(records)
    rows = torch.zeros(records, 20_000)
    rows[:, 0] = 1000.0  # clipped to `clip` in the first coordinate; all others are noise
    rows = rows[mine.start : mine.stop : mine.step]
    total = torch.full((3,), float(len(mine)), dtype=torch.float64)
    count = run.release("first", BoundedSum(total, 1.0), num_records=len(mine)).values
    module, selected, grads = nn.Linear(20_000, 1, bias=False), [], []
    for _ in range(8):
        seen = []
        def load(indices, random_bytes):
            seen.extend(mine[i] for i in indices.tolist())
            return (rows[indices],)
        run.backward(lambda m, b: m(b[0])[:, 0], module, num_records=len(mine), load=load)
        selected.append(seen)
        grads.append(module.weight.grad[0].double() * 20)
    stacked = torch.stack(grads)
    fingerprints = [None] * processes.size
    distributed.all_gather_object(fingerprints, stacked.numpy().tobytes()) if processes.size > 1 else None
    with open(f"saw{processes.rank}.json", "w") as file:
      json.dump({
        "rank": processes.rank,
        "selected": selected,
        "equal": len(set(fingerprints)) == 1,
        "first": stacked[:, 0].tolist(),
        "std": stacked[:, 1:].std().item(),
        "spent": run.spent,
        "count": count.tolist(),
      }, file)
"""


def launch(size, script, *arguments, folder, timeout=240):
    path = folder / "worker.py"
    path.write_text(script)
    command = [*TORCHRUN, f"--nproc-per-node={size}", path, *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=environment, cwd=folder)


@pytest.mark.parametrize("size", [1, 2, 5, 40, 100])
def test_every_record_belongs_to_exactly_one_process(size):
    shards = [Processes(rank, size).shard(43) for rank in range(size)]
    assert sorted(index for shard in shards for index in shard) == list(range(43))


@pytest.mark.parametrize(("size", "noise"), [(1, "continuous"), (2, "continuous"), (4, "continuous"), (2, "grid")])
def test_noise_is_added_once_and_everyone_gets_the_same(size, noise, tmp_path):
    result = launch(size, WORKER, noise, 40, 0.5, folder=tmp_path)
    assert result.returncode == 0, result.stderr
    saw = [json.loads(path.read_text()) for path in sorted(tmp_path.glob("saw*.json"))]
    assert sorted(each["rank"] for each in saw) == list(range(size))
    for each in saw:
        assert each["equal"]
        assert each["std"] == pytest.approx(2.0 * 0.5, rel=5 * (2 * 8 * 20_000) ** -0.5)
        assert each["first"] == saw[0]["first"]
        assert each["spent"] == 9
        assert each["count"] == pytest.approx([40.0] * 3, abs=1e-3)
    batches = [[index for each in saw for index in each["selected"][step]] for step in range(8)]
    for batch, seen in zip(batches, saw[0]["first"], strict=True):
        assert len(set(batch)) == len(batch)  # nobody's records are another's
        assert seen == pytest.approx(0.5 * len(batch), abs=6 * 1.0)  # the sum over all processes, and noise
    counts = np.bincount(np.concatenate(batches).astype(int), minlength=40)
    assert counts.sum() == pytest.approx(8 * 20, abs=6 * (8 * 40 / 4) ** 0.5)
    if size == 2:  # processes select independently: not the same places of their shards
        places = [[{index // 2 for index in step} for step in each["selected"]] for each in saw]
        assert places[0] != places[1]


def test_a_process_without_records_takes_part(tmp_path):
    result = launch(4, WORKER, "continuous", 2, 0.5, folder=tmp_path)
    assert result.returncode == 0, result.stderr
    saw = [json.loads(path.read_text()) for path in sorted(tmp_path.glob("saw*.json"))]
    assert len(saw) == 4
    assert all(each["equal"] and each["count"] == pytest.approx([2.0] * 3, abs=1e-3) for each in saw)
    assert [each["selected"] for each in saw if each["rank"] > 1] == [[[]] * 8] * 2


TRAINED = """
from pathlib import Path
import torch
from torch import distributed
import dpdm
from dpdm.runs.hardware import joined_processes
torch.set_num_threads(1)
with joined_processes() as processes:
    plan = dpdm.DPSGD(dataset_size=1438, expected_batch_size=32, steps=5, noise_multiplier=2.0, delta=1e-4)
    method = dpdm.Diffusion(network=dpdm.MLP(width=16, blocks=1), preconditioning=dpdm.EDM())
    trainer = dpdm.Trainer(method=method, plan=plan, machine=dpdm.Machine(strategy="vectorized"))
    weights = [t.numpy().tobytes() for t in trainer.fit(dpdm.open_dataset("digits")).generator.state_dict().values()]
    everyones = [None] * processes.size
    distributed.all_gather_object(everyones, weights)
    assert all(theirs == weights for theirs in everyones)
threads = [path.read_text() for path in Path("/proc/self/task").glob("*/comm")]
assert not [name for name in threads if "gloo" in name], threads
"""


ADAPTERS = """
import io, random, sys
from pathlib import Path
import torch
from torch import distributed
import dpdm
from dpdm.methods.values import ImageFacts
from dpdm.methods.loader import Loader
from dpdm.privacy import clipped_grad_sum
from dpdm.runs.hardware import joined_processes
from two_worlds import IMAGES
from diffusers_pipelines import save_pipeline
torch.set_num_threads(1)
NUMBER, NORM = len(IMAGES), 0.05
loss, facts = dpdm.DenoisingLoss(noise_multiplicity=2), ImageFacts(IMAGES.shape, IMAGES.class_names)
reduced, reduce = [], distributed.all_reduce
distributed.all_reduce = lambda t: (reduced.append(t.numel()), reduce(t))[1]

def folder(rank):
    network = dpdm.DiffusersFolder(source=save_pipeline(f"pipeline{rank}"), trains="lora:4")
    return dpdm.Diffusion(network=network, loss=loss)

def start(rank):
    trained = dpdm.Start(sources=("public",), gains=False, trains="low-rank:4")
    return dpdm.Diffusion(network=dpdm.CompactUNet(width=16), preconditioning=dpdm.EDM(), start=trained, loss=loss)

with joined_processes() as processes:
    method = {"folder": folder, "start": start}[sys.argv[1]](processes.rank)
    denoiser = method.stepped(method.untrained(facts, seed=1), seed=1).module
    numbers = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in denoiser.parameters():  # where B is zero, A has no gradient
            p.add_(0.1 * torch.randn(p.shape, generator=numbers))
    trains = [p for p in denoiser.parameters() if p.requires_grad]
    frozen = {p: p.clone() for p in denoiser.parameters() if not p.requires_grad}
    size, whole = sum(map(torch.numel, trains)), Loader(IMAGES, loss, method.noise_levels, torch.device("cpu"))
    assert 0 < size < sum(map(torch.numel, frozen)) / 2

    def rows_of(records):  # the draws of a record are its own, whichever process has it
        draws = b"".join(random.Random(record).randbytes(16) for record in records.tolist())
        return whole(records.numpy(), io.BytesIO(draws).read)

    mine = torch.tensor(processes.shard(NUMBER))
    optimizer = torch.optim.SGD(trains, lr=0.5)
    for strategy in ("layer-wise", "vectorized"):
        plan = dpdm.DPSGD(dataset_size=NUMBER, expected_batch_size=NUMBER, steps=2, noise_multiplier=1e-9, delta=1e-3,
                          max_grad_norm=NORM)
        run = plan.start(strategy=dpdm.Machine(strategy=strategy).clipping)
        for _ in range(2):
            alone = clipped_grad_sum(loss, denoiser, rows_of(torch.arange(NUMBER)), max_grad_norm=NORM).vector / NUMBER
            reduced.clear()
            run.backward(loss, denoiser, num_records=len(mine), load=lambda i, _: rows_of(mine[i]))
            together = torch.cat([p.grad.flatten() for p in trains]).double()
            assert together.norm() > 0.1 * NORM
            assert torch.allclose(alone, together, rtol=1e-3, atol=1e-4 * alone.abs().max().item())
            assert sorted(reduced)[-1] == size and sum(reduced) < size + 100, (reduced, size)
            assert all(p.grad is None and torch.equal(p, was) for p, was in frozen.items())
            optimizer.step()
    everyones = [None] * processes.size
    distributed.all_gather_object(everyones, [p.detach().numpy().tobytes() for p in trains])
    assert all(theirs == everyones[0] for theirs in everyones)
"""


@pytest.mark.parametrize("which", ["folder", "start"])
def test_adapters_on_two_processes_take_the_steps_of_one_and_their_sums_alone_are_reduced(which, tmp_path):
    if which == "folder":
        pytest.importorskip("peft")
    result = launch(2, ADAPTERS, which, folder=tmp_path)
    assert result.returncode == 0, result.stderr


IN_GROUPS = TRAINED.replace("delta=1e-4", 'delta=1e-4, unit="group", releases=PRIOR.releases(epsilon=1, delta=1e-4)')
IN_GROUPS = IN_GROUPS.replace('dpdm.open_dataset("digits")', "replace(digits, groups=np.arange(len(digits)) % 500)")
IN_GROUPS = IN_GROUPS.replace("preconditioning=dpdm.EDM()", "preconditioning=dpdm.MomentMatched(), prior=PRIOR")
IN_GROUPS = IN_GROUPS.replace(
    "torch.set_num_threads(1)\n",
    "torch.set_num_threads(1)\nfrom dataclasses import replace\nimport numpy as np\n"
    "PRIOR, digits = dpdm.Prior(centres=1), dpdm.open_dataset('digits')\n",
)


@pytest.mark.parametrize("script", [TRAINED, IN_GROUPS], ids=["images", "groups"])
def test_parameters_are_equal_to_the_bit_on_all_processes_and_no_thread_outlives_the_group(script, tmp_path):
    result = launch(2, script, folder=tmp_path)
    assert result.returncode == 0, result.stderr


SETTINGS = [
    "--epsilon=1",
    "--dataset-size=1438",
    "--set=network.kind=mlp",
    "--set=network.width=16",
    "--set=network.blocks=1",
    "--set=privacy.expected_batch_size=32",
    "--set=machine.strategy=vectorized",
    "--set=prior.centres=2",
    "--set=sampler.steps=3",
]


def command(size, folder, *extra):
    nodes = [] if size == 0 else [*TORCHRUN, f"--nproc-per-node={size}", "-m"]
    head = nodes or [sys.executable, "-m"]
    return [*head, "dpdm", "train", "digits", "-r", str(folder), *SETTINGS, *extra]


def start(line, folder):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with (folder / "said").open("w") as said:
        return subprocess.Popen(line, cwd=folder, env=environment, stdout=said, stderr=said)


def spent(run: Path) -> int:
    lines = (run / "private" / "journal.jsonl").read_text().splitlines()
    return max([json.loads(line).get("spent", 0) for line in lines if line.strip()], default=0)


def wait_for(condition, process, seconds=120):
    until = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, "it ended too soon"
        assert time.monotonic() < until, "nothing happened"
        time.sleep(0.05)


def test_a_run_stops_on_sigterm_and_goes_on_with_another_number_of_processes(tmp_path):
    run, steps = tmp_path / "run", "--set=privacy.steps=60"
    begun = start(command(2, run, steps), tmp_path)
    wait_for(lambda: (run / "private" / "journal.jsonl").exists() and spent(run) > 12, begun)
    begun.send_signal(signal.SIGTERM)
    begun.wait(timeout=60)
    # Whoever stopped it: what was spent is on disk, and the next process goes on from a checkpoint that is whole.
    before = spent(run)
    assert 12 < before < 67
    ended = subprocess.run(
        command(0, run, steps), cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert spent(run) == 7 + 60  # the prior's releases come first
    checked = subprocess.run(
        [sys.executable, "-m", "dpdm", "verify", run], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stderr


def test_a_process_that_dies_ends_the_job_and_it_resumes(tmp_path):
    run, steps = tmp_path / "run", "--set=privacy.steps=60"
    begun = start(command(2, run, steps), tmp_path)
    wait_for(lambda: (run / "private" / "journal.jsonl").exists() and spent(run) > 10, begun)
    children = subprocess.run(["pgrep", "-P", str(begun.pid)], capture_output=True, text=True, check=True)
    os.kill(int(children.stdout.split()[-1]), signal.SIGKILL)
    assert begun.wait(timeout=120) != 0
    assert not (run / "release").exists()
    before = spent(run)
    ended = subprocess.run(
        command(2, run, steps),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert ended.returncode == 0, ended.stderr
    assert spent(run) >= before
    assert (run / "release" / "privacy.json").exists()
    assert ended.stdout.count("done: ") == 1  # the first process speaks for all


def test_processes_make_together_what_one_makes_alone(tmp_path):
    run = tmp_path / "run"
    alone = subprocess.run(
        command(0, run, "--set=privacy.steps=2"), cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert alone.returncode == 0, alone.stderr
    made = {}
    for name, head in (("one", [sys.executable]), ("three", [*TORCHRUN, "--nproc-per-node=3"])):
        line = [*head, "-m", "dpdm", "sample", run, "-n", "1100", "-o", f"{name}.npz", "--seed", "3"]
        done = subprocess.run(
            line, cwd=tmp_path, capture_output=True, text=True, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"}
        )
        assert done.returncode == 0, done.stderr
        with np.load(tmp_path / f"{name}.npz") as archive:
            made[name] = archive["images"], archive["labels"]
    for one, three in zip(made["one"], made["three"], strict=True):
        np.testing.assert_array_equal(one, three)
    assert len(made["one"][0]) == 1100


def test_processes_that_were_started_differently_refuse(tmp_path):
    script = WORKER.replace("delta=1e-3,", "delta=1e-3 / (1 + processes.rank),")
    result = launch(2, script, "continuous", 40, 0.5, folder=tmp_path)
    assert result.returncode != 0
    assert "the processes of this run differ in their plan" in result.stderr


DIFFERING = """
import dataclasses, sys
import numpy as np
import torch
import dpdm
from dpdm.runs.hardware import joined_processes
torch.set_num_threads(1)
what = sys.argv[1]
with joined_processes() as processes:
    images = np.arange(20, dtype=np.uint8)[:, None, None, None] + np.zeros((8, 8, 1), np.uint8)
    labels, groups = np.arange(20) % 2, np.arange(20) // 2
    if processes.rank == 1:
        if what == "a file more":
            images, labels, groups = images[np.r_[0, :20]], labels[np.r_[0, :20]], groups[np.r_[0, :20]]
        elif what == "another order":
            images = images[::-1]
        elif what == "other labels":
            labels = 1 - labels
        elif what == "other groups":
            groups = groups[::-1]
    data = dpdm.ImageDataset(images=images, labels=labels, num_classes=2, groups=groups, name="images")
    plan = dpdm.DPSGD(dataset_size=10, expected_batch_size=5, steps=2, noise_multiplier=2.0, delta=1e-3,
                      relation="add_or_remove_one", unit="group")
    method = dpdm.Diffusion(network=dpdm.MLP(width=8, blocks=1), preconditioning=dpdm.EDM())
    trainer = dpdm.Trainer(method=method, plan=plan, run="run", ledger=dpdm.Ledger("ledger.sqlite"))
    try:
        trainer.fit(data)
    except dpdm.InputError as error:
        with open(f"refused{processes.rank}", "w") as file:
            file.write(str(error))
"""


@pytest.mark.parametrize("what", ["nothing", "a file more", "another order", "other labels", "other groups"])
def test_processes_that_see_different_images_refuse_before_anything_is_spent(what, tmp_path):
    """Each keeps a part by index: one record could lie in two parts, and enter a step twice."""
    result = launch(2, DIFFERING, what, folder=tmp_path)
    assert result.returncode == 0, result.stderr
    said = [path.read_text() for path in sorted(tmp_path.glob("refused*"))]
    if what == "nothing":
        assert said == []
        assert (tmp_path / "run" / "release").exists()
        images = np.zeros((20, 8, 8, 1), np.uint8) + np.arange(20, dtype=np.uint8)[:, None, None, None]
        ledger = Ledger(str(tmp_path / "ledger.sqlite"))
        seen = fingerprint(Records("images", images, np.arange(20) // 2), ledger.storage.key()).records
        assert ledger.account("images").records == seen, "each digests its own, and the ledger knows all"
    else:
        assert said == ["the processes of this run differ in their images: start all by the same command"] * 2
        assert not (tmp_path / "run").exists()
        assert not (tmp_path / "ledger.sqlite").exists()


OTHER_NODE = """
import json
import numpy as np
import torch
import dpdm
from dpdm.privacy import plan as plans
from dpdm.runs.hardware import joined_processes
torch.set_num_threads(1)
with joined_processes() as processes:
    calibrate = plans.calibrate
    plans.calibrate = lambda *given, **named: calibrate(*given, **named) * (1 + 1e-9 * processes.rank)
    images = np.arange(20, dtype=np.uint8)[:, None, None, None] + np.zeros((8, 8, 1), np.uint8)
    data = dpdm.ImageDataset(images=images, name="images")
    plan = dpdm.DPSGD(dataset_size=20, expected_batch_size=5, steps=2, delta=1e-13).calibrate(epsilon=3.0)
    method = dpdm.Diffusion(network=dpdm.MLP(width=8, blocks=1), preconditioning=dpdm.EDM())
    trainer = dpdm.Trainer(method=method, plan=plan, run="run")
    release = trainer.fit(data)
    with open(f"saw{processes.rank}.json", "w") as file:
        json.dump([plan.noise_multiplier, release.settings["plan"]["releases"][-1]["noise_multiplier"]], file)
"""


def test_all_processes_take_the_plan_that_the_first_one_calibrated(tmp_path):
    """On nodes of different kinds each comes to other last digits."""
    result = launch(2, OTHER_NODE, folder=tmp_path)
    assert result.returncode == 0, result.stderr
    (first, used), (second, used_there) = (json.loads((tmp_path / f"saw{rank}.json").read_text()) for rank in (0, 1))
    assert first != second
    assert used == used_there == first


def test_two_nodes_are_one_run(tmp_path):
    """Two launchers that meet over the network, as on two machines, each with two processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    run = tmp_path / "run"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=2"]
    launcher += ["--master-addr=127.0.0.1", f"--master-port={port}"]
    nodes = [
        subprocess.Popen(
            [*launcher, f"--node-rank={node}", "-m", *command(0, run, "--set=privacy.steps=12")[2:]],
            cwd=tmp_path,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for node in (0, 1)
    ]
    said = [node.communicate(timeout=240) for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], said
    assert [out.count("done: ") for out, _ in said] == [1, 0]
    assert spent(run) == 7 + 12


MEASURED = """
import json, time
import torch
from dpdm.config import load_config
from dpdm.privacy.mechanism import MechanismRun
from dpdm.runs import fit_to_time
from dpdm.methods import ImageFacts
from dpdm.runs.hardware import joined_processes
torch.set_num_threads(1)
network = ["network.kind=mlp", "network.width=16", "network.blocks=1", "machine.strategy=vectorized"]
config = load_config("digits", overrides=[*network, "privacy.steps=50", "privacy.expected_batch_size=101"])
facts = ImageFacts((1, 8, 8), tuple("0123456789"))
backward, taken = MechanismRun.backward, []
with joined_processes() as processes:
    def slow(self, *args, num_records, **kwargs):
        taken.append(num_records)
        time.sleep(0.01 * num_records * (1 + processes.rank))
        return backward(self, *args, num_records=num_records, **kwargs)
    MechanismRun.backward = slow
    fitted, _, _ = fit_to_time(config, facts, config.plan(lambda: 0), minutes=50 * 51 * 0.02 * 0.25 / 51)
    with open(f"saw{processes.rank}.json", "w") as file:
        privacy = fitted.privacy
        json.dump([taken, privacy.steps, privacy.expected_batch_size, fitted.method.loss.noise_multiplicity], file)
"""


def test_time_is_measured_on_all_processes_at_once_each_with_its_share(tmp_path):
    """A quarter of the time that the slower one of two takes for its half: half the steps, of half the size."""
    result = launch(2, MEASURED, folder=tmp_path)
    assert result.returncode == 0, result.stderr
    (taken, *fitted), other = [json.loads(path.read_text()) for path in sorted(tmp_path.glob("saw*.json"))]
    assert other == [taken, *fitted]
    assert {0, 1} <= set(taken) <= {0, 1, 4, 16, 51}
    steps, batch, copies = fitted
    assert 5 < steps <= 26  # less where the network itself takes time, as it does for few images
    assert 10 < batch <= 52
    assert copies == 1


def test_minutes_are_fitted_by_all_and_told_by_one(tmp_path):
    done = subprocess.run(
        command(2, tmp_path / "run", "--minutes=0.02"),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("for 0.02 minutes here: ") == 1


@pytest.mark.slow
def test_processes_evaluate_together_what_one_does_alone(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (120, 12, 12, 1)).astype(np.uint8)
    labels = np.arange(120) % 3
    images[labels == 1, :6] = 255
    np.savez(tmp_path / "made.npz", images=images, labels=labels, num_classes=np.array(3))
    np.savez(tmp_path / "real.npz", images=images // 2, labels=labels, num_classes=np.array(3))
    line = ["dpdm", "evaluate", "made.npz", "--reference", "real.npz", "--quick", "--json", "--features", "pixels"]
    reports = []
    for head in ([sys.executable], [*TORCHRUN, "--nproc-per-node=2"]):
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [*head, "-m", *line], cwd=tmp_path, capture_output=True, text=True, env=environment, check=False
        )
        assert done.returncode == 0, done.stderr
        reports.append(json.loads(done.stdout))
    alone, together = reports
    one, two = alone.pop("fidelity"), together.pop("fidelity")
    for name in ("frechet", "precision", "recall", "density", "coverage"):
        assert one[name]["value"] == pytest.approx(two[name]["value"], rel=1e-3, abs=1e-6)
    assert [a["frechet"] for a in one["per_class"]] == [b["frechet"] for b in two["per_class"]]  # none: too few
    assert alone == together


@pytest.mark.slow
def test_processes_compare_together_what_one_does_alone(tmp_path):
    run = tmp_path / "run"
    subprocess.run(command(0, run, "--set=privacy.steps=2"), cwd=tmp_path, capture_output=True, check=True)
    line = ["dpdm", "compare", "run", "--reference", "digits:test", "-n", "600", "--quick", "--json"]
    reports = []
    for head in ([sys.executable], [*TORCHRUN, "--nproc-per-node=2"]):
        done = subprocess.run(
            [*head, "-m", *line],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            check=False,
        )
        assert done.returncode == 0, done.stderr
        reports.append(json.loads(done.stdout))
    assert reports[0] == reports[1]
    assert reports[0]["rows"][0]["images"] == 600
