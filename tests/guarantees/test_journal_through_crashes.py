"""Releases ever made <= what the journal says is spent <= what the plan allows, through any crash."""

import json
import os
import subprocess
import sys

import pytest
import torch

from dpdm.privacy import DPSGD, InsecureSeededEntropy
from dpdm.privacy.journal import Journal
from dpdm.types import InputError

ZEROS = torch.zeros(3, dtype=torch.float64)


def plan(**changes):
    fields = {"dataset_size": 100, "expected_batch_size": 10, "steps": 1000, "noise_multiplier": 4.0, "delta": 1e-3}
    return DPSGD(**(fields | changes))


# Each worker trains on the same journal and is killed at a random moment; now and then one stops cleanly instead.
KILLED = """
import os, random, signal, sys, time
import torch
from dpdm.privacy import DPSGD
journal, side, rounds = sys.argv[1], sys.argv[2], int(sys.argv[3])
from pathlib import Path
plan = DPSGD(dataset_size=100, expected_batch_size=10, steps=100_000, noise_multiplier=4.0, delta=1e-3)
torch.set_num_threads(1)
zeros = torch.zeros(3, dtype=torch.float64)
for _ in range(rounds):
    pid = os.fork()
    if pid == 0:
        lines = os.open(side, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        run = plan.start(Path(journal))
        while True:
            run._release(zeros, sensitivity=1.0)
            os.write(lines, b"released\\n")
            if random.random() < 0.001:
                run.settle()
    time.sleep(random.uniform(0.005, 0.15))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    made = os.path.getsize(side) // 9 if os.path.exists(side) else 0
    after = plan.start(Path(journal))
    print(made, after.steps_spent, flush=True)
    after.close()
"""


@pytest.mark.proof
def test_kill_9_never_leaves_a_release_uncounted(tmp_path):
    journal, side = tmp_path / "journal", tmp_path / "side"
    result = subprocess.run(
        [sys.executable, "-c", KILLED, journal, side, "12"], capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    counts = [tuple(map(int, line.split())) for line in result.stdout.splitlines()]
    assert len(counts) == 12
    assert counts[-1][0] > 0, "no worker ever released anything: the test shows nothing"
    for made, spent in counts:
        assert made <= spent <= 100_000


def test_a_reservation_is_on_disk_before_the_release_is_made(tmp_path, monkeypatch):
    order = []
    fsync = os.fsync

    def watched(descriptor):
        fsync(descriptor)
        order.append("fsync")

    class Watched(InsecureSeededEntropy):
        def stream(self, purpose, number):
            order.append(purpose)
            on_disk = [json.loads(line) for line in (tmp_path / "journal").read_text().splitlines()]
            assert on_disk[-1]["spent"] > number, "noise is drawn for a release that is not yet on disk"
            return super().stream(purpose, number)

    monkeypatch.setattr(os, "fsync", watched)
    run = plan(steps=5).start(tmp_path / "journal", entropy=Watched(0))
    assert order, "a new journal is on disk before anything is reserved"
    order.clear()
    for _ in range(5):
        run._release(ZEROS, sensitivity=1.0)
    run.close()
    assert order == ["fsync", "noise"] * 5


def test_a_crashed_run_repeats_nothing_and_counts_what_it_reserved(tmp_path):
    run = plan().start(tmp_path / "journal")
    for _ in range(13):
        run._release(ZEROS, sensitivity=1.0)
    run.close()  # a crash: not settled
    again = plan().start(tmp_path / "journal")
    assert again.steps_spent >= 13
    again.close()


def test_resuming_the_same_checkpoint_twice_counts_twice(tmp_path):
    spent = []
    for _ in range(3):
        run = plan().start(tmp_path / "journal")
        before = run.steps_spent
        for _ in range(25):
            run._release(ZEROS, sensitivity=1.0)
        assert run.steps_spent == before + 25
        run.close()
        again = plan().start(tmp_path / "journal")
        spent.append(again.steps_spent)
        again.close()
    assert all(n >= 25 * (i + 1) for i, n in enumerate(spent))


def test_a_clean_stop_gives_back_exactly_what_was_not_made(tmp_path):
    run = plan().start(tmp_path / "journal")
    for _ in range(13):
        run._release(ZEROS, sensitivity=1.0)
    run.settle()
    run.close()
    again = plan().start(tmp_path / "journal")
    assert again.steps_spent == 13
    left = 0
    while not again.finished:
        again._release(ZEROS, sensitivity=1.0)
        left += 1
    assert left == 1000 - 13
    with pytest.raises(InputError, match="are spent"):
        again._release(ZEROS, sensitivity=1.0)
    again.close()


def test_stops_and_crashes_never_add_up_to_more_than_the_plan(tmp_path):
    made = 0
    for round_ in range(200):
        run = plan(steps=300).start(tmp_path / "journal")
        for _ in range(round_ % 5):
            if not run.finished:
                run._release(ZEROS, sensitivity=1.0)
                made += 1
        if round_ % 2:
            run.settle()
        finished = run.finished
        run.close()
    assert finished
    assert 0 < made <= 300


def test_a_torn_last_line_was_never_used(tmp_path):
    path = tmp_path / "journal"
    run = plan().start(path)
    for _ in range(15):
        run._release(ZEROS, sensitivity=1.0)
    run.close()
    whole = path.read_bytes()
    for torn in (b'{"spe', b"\x00\x00\xff", b'{"spent": 999}'):
        path.write_bytes(whole + torn)
        again = plan().start(path)
        assert again.steps_spent == 20
        again.close()
        assert path.read_bytes() == whole


def test_a_torn_first_line_is_an_empty_journal(tmp_path):
    (tmp_path / "journal").write_bytes(b'{"claim": "ab')
    run = plan().start(tmp_path / "journal")
    assert run.steps_spent == 0
    run._release(ZEROS, sensitivity=1.0)
    run.close()
    again = plan().start(tmp_path / "journal")
    assert again.steps_spent == 10
    again.close()


DAMAGE = {
    "not json": lambda header, entry: b"spent: 3\n",
    "not text": lambda header, entry: header + b"\xff\xfe\x00\n" + entry,
    "no header": lambda header, entry: entry + entry,
    "no count": lambda header, entry: header + b'{"made": 3}\n',
    "no number": lambda header, entry: header + b'{"spent": "many"}\n',
    "a list": lambda header, entry: header + b"[1]\n",
    "nothing": lambda header, entry: header + b'{"spent": null}\n',
    "infinity": lambda header, entry: header + b'{"spent": Infinity}\n',
    "empty line": lambda header, entry: header + b"\n" + entry,
    "more than planned": lambda header, entry: header + b'{"spent": 1001}\n',
    "less than nothing": lambda header, entry: header + b'{"spent": -1}\n',
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_journal_is_refused_and_left_alone(damage, tmp_path):
    path = tmp_path / "journal"
    run = plan().start(path)
    run._release(ZEROS, sensitivity=1.0)
    run.close()
    header, entry = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(DAMAGE[damage](header, entry))
    before = path.read_bytes()
    for _ in range(2):  # the second time too: the first refusal must not hold the file
        with pytest.raises(InputError, match="is damaged") as caught:
            plan().start(path)
        assert "\n" not in str(caught.value)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "change",
    [
        {"steps": 1001},
        {"noise_multiplier": 4.1},
        {"expected_batch_size": 11},
        {"dataset_size": 101},
        {"max_grad_norm": 2.0},
        {"delta": 1e-4},
        {"relation": "replace_special"},
        {"releases": {"first": 3.0}},
    ],
)
def test_a_journal_counts_for_one_plan_only(change, tmp_path):
    plan().start(tmp_path / "journal").close()
    with pytest.raises(InputError, match="another plan"):
        plan(**change).start(tmp_path / "journal")


def test_a_seeded_run_cannot_go_on_as_a_private_one(tmp_path):
    plan().start(tmp_path / "journal", entropy=InsecureSeededEntropy(0)).close()
    with pytest.raises(InputError, match="another plan"):
        plan().start(tmp_path / "journal")


def test_a_second_process_is_refused(tmp_path):
    run = plan().start(tmp_path / "journal")
    other = "import fcntl, sys; fcntl.flock(open(sys.argv[1], 'a+'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    command = [sys.executable, "-c", other, tmp_path / "journal"]
    assert b"BlockingIOError" in subprocess.run(command, capture_output=True, timeout=60).stderr
    with pytest.raises(InputError, match="in use"):
        plan().start(tmp_path / "journal")
    run.close()
    assert subprocess.run(command, capture_output=True, timeout=60).returncode == 0


def test_a_journal_holds_counts_and_nothing_of_the_data(tmp_path):
    run = plan(steps=5).start(tmp_path / "journal")
    module = torch.nn.Linear(2, 1)
    for _ in range(5):
        run.backward(
            lambda module, batch: module(batch[0])[:, 0],
            module,
            num_records=20,
            load=lambda indices, draws: (torch.ones(len(indices), 2),),
        )
    run.close()
    lines = [json.loads(line) for line in (tmp_path / "journal").read_text().splitlines()]
    assert [set(line) for line in lines] == [{"claim", "planned", "figures"}] + [{"spent"}] * 5
    assert [line["spent"] for line in lines[1:]] == [1, 2, 3, 4, 5]


def test_more_releases_than_reserved_cannot_be_settled():
    journal = Journal(None, claim="", planned=10)
    journal.reserve(3)
    with pytest.raises(ValueError, match="bypassed"):
        journal.settle(4)


def test_the_last_block_is_what_the_plan_has_left():
    journal = Journal(None, claim="", planned=10)
    assert [journal.reserve(4) for _ in range(4)] == [4, 4, 2, 0]
    assert journal.spent == 10
