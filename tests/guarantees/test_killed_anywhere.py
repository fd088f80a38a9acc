"""A training run that is killed again and again, anywhere, ends with a valid release and counts what it made."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from two_worlds import IMAGES

from dpdm.config import Machine
from dpdm.diffusion import DDIM, DenoisingLoss, MomentMatched
from dpdm.methods import Diffusion, Prior
from dpdm.networks import MLP
from dpdm.privacy import DPSGD, InsecureSeededEntropy
from dpdm.runs import Release, Trainer, folder, verify_release

pytestmark = pytest.mark.proof

PRIOR = Prior(centres=1)


def trainer(run, *, steps=300, entropy=None):
    plan = DPSGD(
        dataset_size=12,
        expected_batch_size=4,
        steps=steps,
        noise_multiplier=3.0,
        delta=1e-3,
        releases=PRIOR.releases(epsilon=1, delta=1e-3),
    )
    given = {} if entropy is None else {"entropy": entropy}
    return Trainer(
        method=Diffusion(
            network=MLP(width=8, blocks=1),
            preconditioning=MomentMatched(),
            prior=PRIOR,
            loss=DenoisingLoss(noise_multiplicity=2),
            sampler=DDIM(steps=2),
        ),
        plan=plan,
        machine=Machine(device="cpu", precision="float32", strategy="vectorized"),
        run=run,
        **given,
    )


# A child trains, saving after every step, and notes each noisy sum beside the run as soon as there is one; the parent
# kills it at a random moment of its work, until one gets to the end.
KILLED = """
import os, random, signal, sys, time
import torch
torch.set_num_threads(1)
from test_killed_anywhere import IMAGES, stopped_after, trainer
from dpdm.privacy import MechanismRun
from dpdm.runs import folder
run, side = sys.argv[1], sys.argv[2]
folder.PrivateFolder.__init__.__kwdefaults__["seconds_between_saves"] = 0.0
sound = MechanismRun._release
lines = os.open(side, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
def noted(self, total, *, sensitivity):
    noisy = sound(self, total, sensitivity=sensitivity)
    os.write(lines, b"made\\n")
    return noisy
MechanismRun._release = noted
stopped_after(trainer(run), 1)  # a prior that a kill loses ends a run, which is another test
rounds = 0
while True:
    pid = os.fork()
    if pid == 0:
        trainer(run).fit(IMAGES)
        os._exit(0)
    if rounds < 25:
        time.sleep(random.uniform(0.0, 0.6))
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    rounds += 1
    print(rounds, status, flush=True)
    if status == 0 or rounds > 60:
        break
    if os.WIFEXITED(status):
        sys.exit(f"round {rounds} ended with {os.WEXITSTATUS(status)}")
"""


def test_killed_twenty_times_it_ends_with_a_valid_release(tmp_path):
    run, side = tmp_path / "run", tmp_path / "made"
    command = [sys.executable, "-c", KILLED, run, side]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=environment)
    assert result.returncode == 0, result.stderr
    rounds = result.stdout.splitlines()
    assert len(rounds) >= 20, "it was too quick to be killed twenty times: the test shows little"
    made = side.read_text().count("made")
    journal = (run / "private" / "journal.jsonl").read_text().splitlines()
    spent = [json.loads(line)["spent"] for line in journal[1:]]
    assert 0 < made <= spent[-1] == 304
    verify_release(run)
    images, _ = Release.load(run).sample(10, seed=0)
    assert images.shape == (10, 8, 8, 1)


def stopped_after(trainer, count):
    """Take `count` steps, then stop as SIGTERM and Ctrl-C do."""
    steps = trainer.steps(IMAGES)
    for _ in range(count):
        next(steps)
    steps.close()


@pytest.mark.parametrize("stops", [(1,), (5, 3, 11)])
def test_an_interrupted_run_is_the_uninterrupted_one_to_the_bit(stops, tmp_path):
    entropy = InsecureSeededEntropy(3)
    whole = trainer(tmp_path / "whole", steps=30, entropy=entropy).fit(IMAGES)
    for count in stops:
        stopped_after(trainer(tmp_path / "parts", steps=30, entropy=entropy), count)
    parts = trainer(tmp_path / "parts", steps=30, entropy=entropy).fit(IMAGES)
    for (name, one), other in zip(
        whole.generator.state_dict().items(), parts.generator.state_dict().values(), strict=True
    ):
        assert torch.equal(one, other), name
    assert (tmp_path / "whole" / "release" / "model.safetensors").read_bytes() == (
        tmp_path / "parts" / "release" / "model.safetensors"
    ).read_bytes()
    np.testing.assert_array_equal(whole.sample(5, seed=0)[0], parts.sample(5, seed=0)[0])


def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path, monkeypatch):
    monkeypatch.setitem(folder.PrivateFolder.__init__.__kwdefaults__, "seconds_between_saves", 0.0)
    stopped_after(trainer(tmp_path / "run", steps=12), 6)
    last, before = (tmp_path / "run" / "private" / name for name in (folder._CHECKPOINT, folder._BEFORE))
    last.write_bytes(last.read_bytes()[:200])
    steps = trainer(tmp_path / "run", steps=12).steps(IMAGES)
    progress = next(steps)
    assert progress.steps_spent == 7
    assert 6 <= progress.updates <= 7  # the one before had seen a step less, or as many
    steps.close()
    for path in (last, before):
        path.write_bytes(b"")
    with pytest.raises(ValueError, match="is damaged"):
        next(trainer(tmp_path / "run", steps=12).steps(IMAGES))
