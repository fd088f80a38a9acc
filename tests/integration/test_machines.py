"""What other machines than a developer's are like: right, or one line, and nothing is lost."""

import contextlib
import errno
import io
import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import small_run
import torch
from PIL import Image

import dpdm as package
from dpdm import cli, terminal
from dpdm.cli import options
from dpdm.cli import training as verbs
from dpdm.files import held, write_atomically
from dpdm.privacy import journal
from dpdm.runs import Release, Trainer, hardware
from dpdm.runs.folder import PrivateFolder
from dpdm.types import InputError, is_of_memory

PRIOR_ALONE = (
    "--epsilon=1",
    "--set=data.size=8",
    "--method=prior",
    "--set=privacy.delta=1e-3",
    "--set=prior.centres=1",
)
SMALL = (*small_run.SMALL, "--set=privacy.delta=1e-13")  # at which ε is RDP's bound, and calibration takes no time
HIDDEN = """
import sys
sys.modules["fcntl"] = sys.modules["resource"] = None
from dpdm import cli
for line in open("lines"):
    sys.argv = ["dpdm", *line.split()]
    try:
        cli.main()
    except SystemExit as end:
        assert not end.code, line
"""


@pytest.fixture
def trained(dpdm, photos, tmp_path):
    code, _, err = dpdm("train", photos, "--run", tmp_path / "run", *SMALL)
    assert code == 0, err
    return tmp_path / "run"


def no_links(*arguments, **keywords):
    raise OSError(errno.EPERM, "Operation not permitted")


def settings(photos):
    return package.load_config(str(photos), overrides=[text.removeprefix("--set=") for text in SMALL])


def test_a_run_saves_again_and_again_where_there_are_no_links(photos, tmp_path, monkeypatch):
    """exFAT, SMB, and most file systems in user space."""
    monkeypatch.setattr(os, "link", no_links)
    monkeypatch.setattr(Path, "hardlink_to", no_links)
    monkeypatch.setattr(os, "symlink", no_links)
    config = settings(photos)
    data = config.data.open()
    for _ in range(2):
        steps = Trainer.from_config(config, data, run=tmp_path / "run").steps(data)
        next(steps), next(steps)
        steps.close()
    Trainer.from_config(config, data, run=tmp_path / "run").fit(data)
    assert Release.load(tmp_path / "run").claim["steps"] == 6
    assert (tmp_path / "run" / "private" / "checkpoint.before.safetensors").exists()


def test_where_no_checkpoint_can_take_the_place_of_another_nothing_is_spent(dpdm, photos, tmp_path, monkeypatch):
    save, calls = PrivateFolder.save, []

    def once(*arguments, **keywords):
        calls.append(None)
        if len(calls) > 1:
            no_links()
        save(*arguments, **keywords)

    monkeypatch.setattr(PrivateFolder, "save", once)
    book = package.Ledger(str(tmp_path / "ledger.sqlite"))
    code, _, err = dpdm("train", photos, "--run", "r", "--ledger", book.url, *SMALL)
    assert (code, err.count("dpdm: ")) == (1, 1)
    assert "Operation not permitted" in err
    assert "the same command goes on" in err
    assert '"spent"' not in (tmp_path / "r" / "private" / "journal.jsonl").read_text()
    assert book.accounts() == {}


def test_the_old_file_has_its_other_name_whenever_the_new_one_is_there(tmp_path):
    path, before = tmp_path / "new", tmp_path / "old"
    for text in ("one", "two", "three"):
        write_atomically(path, lambda file, text=text: file.write_text(text), before=before)
    assert (before.read_text(), path.read_text()) == ("two", "three")
    with pytest.raises(OSError, match="Operation"):
        write_atomically(path, no_links, before=before)
    assert (before.read_text(), path.read_text()) == ("two", "three")
    assert sorted(tmp_path.iterdir()) == [path, before]


def test_a_damaged_checkpoint_never_takes_the_place_of_the_whole_one_before(photos, tmp_path):
    config = settings(photos)
    data = config.data.open()
    steps = Trainer.from_config(config, data, run=tmp_path / "run").steps(data)
    next(steps)
    steps.close()
    private = tmp_path / "run" / "private"
    (private / "checkpoint.safetensors").write_bytes(b"damaged")
    whole = (private / "checkpoint.before.safetensors").read_bytes()
    steps = Trainer.from_config(config, data, run=tmp_path / "run").steps(data)
    next(steps)
    assert (private / "checkpoint.before.safetensors").read_bytes() == whole
    steps.close()


def test_a_folder_that_cannot_be_synchronised_is_no_reason_to_end(tmp_path, monkeypatch):
    fsync = os.fsync

    def of_files(descriptor):
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.EINVAL, "Invalid argument")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", of_files)
    counts = journal.Journal(tmp_path / "journal", claim="a", planned=3)
    assert counts.reserve(2) == 2
    counts.close()


def test_a_lock_is_held_by_one_and_free_once_its_holder_is_killed(tmp_path):
    lock = tmp_path / ".lock"
    holder = "import sys, time; from pathlib import Path; from dpdm.files import held\n"
    holder += "with held(Path(sys.argv[1]), otherwise='busy'): print('held', flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", holder, lock], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    with pytest.raises(InputError, match=r"^busy$"), held(lock, otherwise="busy"):
        pass
    process.kill()
    process.wait()
    with held(lock, otherwise="busy"):
        pass
    process.stdout.close()


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch):
    import filelock

    def no_locks(*arguments, **keywords):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(filelock, "lock_descriptor", no_locks)
    with pytest.raises(InputError, match=r"journal cannot be locked \(No locks available\)"):
        journal.Journal(tmp_path / "journal", claim="", planned=1)
    with pytest.raises(InputError, match="cannot be locked"), held(tmp_path / ".lock", otherwise=""):
        pass


@pytest.mark.proof
def test_a_release_is_verified_sampled_and_evaluated_where_there_is_no_fcntl(trained, tmp_path):
    lines = [
        f"verify {trained}",
        f"sample {trained} -n 30 -o made.npz",
        f"sample {trained} -n 30 -o others.npz",
        "evaluate made.npz --reference others.npz --quick",
        "ledger --ledger book.sqlite",
    ]
    (tmp_path / "lines").write_text("\n".join(lines))
    done = subprocess.run(
        [sys.executable, "-c", HIDDEN], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "Warning" not in done.stderr


@pytest.fixture
def letters(monkeypatch):
    """Standard output and error of a terminal with these letters alone."""

    def terminal_with(encoding):
        streams = [io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2)]
        monkeypatch.setattr(sys, "stdout", streams[0])
        monkeypatch.setattr(sys, "stderr", streams[1])
        return streams

    return terminal_with


def said(stream):
    stream.flush()
    return stream.buffer.getvalue().decode(stream.encoding)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
@pytest.mark.parametrize(
    "line", [["--help"], ["train", "--help"], ["ledger", "show", "größe"], ["plan", "ε\udce9.zip"], ["ledger"]]
)
def test_every_verb_speaks_in_the_letters_of_the_terminal(letters, monkeypatch, tmp_path, encoding, line):
    streams = letters(encoding)
    monkeypatch.setenv("DPDM_LEDGER", str(tmp_path / "größe.sqlite"))
    monkeypatch.setattr(sys, "argv", ["dpdm", *line])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code in (0, 2, None)
    assert "".join(map(said, streams)).strip()


def test_what_a_terminal_has_no_letter_for_is_spelt_out(letters):
    out, err = letters("ascii")
    terminal.speak_in_its_letters()
    options.say("ε ≤ 1, größe \udce9")
    terminal.tell("██·")
    options.print_json({"name": "größe ε"})
    first, *rest = said(out).splitlines()
    assert first == "epsilon <= 1, gr\\xf6\\xdfe \\udce9"
    assert json.loads("".join(rest)) == {"name": "größe ε"}, "JSON means the same"
    assert said(err) == "##.\n"


def test_who_reads_no_more_ends_it_quietly(tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "dpdm", "--help"], stdout=writer, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            RuntimeError(
                "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried "
                "to allocate 4398046511104 bytes. Error code 12 (Cannot allocate memory)"
            ),
            "(4,096.0 GiB more were asked for)",
        ),
        (
            torch.OutOfMemoryError(
                "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79.15 GiB of which "
                "10.50 GiB is free. Including non-PyTorch memory\nthis process has 1 GiB"
            ),
            "(20.00 GiB more were asked for, and 10.50 GiB are free)",
        ),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be"), "(CUDA error: out of memory"),
        (RuntimeError("std::bad_alloc"), "(std::bad_alloc)"),
        (MemoryError("Unable to allocate 3.64 TiB for an array with shape (1, 2)"), "(3.64 TiB more were asked for)"),
        (MemoryError(), "(it is not known how much"),
    ],
)
def test_too_little_memory_is_one_line_with_sizes(dpdm, photos, monkeypatch, error, words):
    """Wherever it shows: here as images are tried in the rehearsal, before anything is spent."""

    def too_much(*arguments, **keywords):
        raise error

    monkeypatch.setattr(package.MLP, "build", too_much)
    code, _, err = dpdm("train", photos, "--run", "r", *SMALL)
    assert (code, err.count("\n")) == (1, 1)
    assert err.startswith("dpdm: not enough memory (")
    assert words in err


def test_a_picture_that_takes_too_much_memory_is_no_bad_one(dpdm, photos, monkeypatch):
    def too_much(*arguments, **keywords):
        raise MemoryError("Unable to allocate 3.64 TiB for an array")

    monkeypatch.setattr(Image, "open", too_much)
    for line in (["train", photos, "--run", "r", *SMALL], ["check", photos], ["prepare", photos, "-o", "p"]):
        code, _, err = dpdm(*line)
        assert (code, err.count("\n")) == (1, 1)
        assert err.startswith("dpdm: not enough memory (3.64 TiB more were asked for)"), err


def test_a_real_allocation_that_is_too_large_is_known_as_one():
    with pytest.raises((RuntimeError, MemoryError)) as caught:
        torch.empty(2**50, dtype=torch.uint8)
    assert is_of_memory(caught.value)
    assert not is_of_memory(RuntimeError("shapes differ"))


def test_a_checkpoint_that_does_not_fit_into_memory_is_not_called_damaged(photos, tmp_path, monkeypatch):
    config = settings(photos)
    data = config.data.open()
    steps = Trainer.from_config(config, data, run=tmp_path / "run").steps(data)
    next(steps)
    steps.close()

    def full(*arguments, **keywords):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    monkeypatch.setattr(torch.nn.Module, "load_state_dict", full)
    with pytest.raises(RuntimeError, match="can't allocate"):
        Trainer.from_config(config, data, run=tmp_path / "run").fit(data)
    assert (tmp_path / "run" / "private" / "checkpoint.safetensors").exists()


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"WORLD_SIZE": "2"}, "one of 2 processes"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, "one of 2 processes"),
        ({"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "x"}, "one of 2 processes"),
        ({"WORLD_SIZE": "many"}, "WORLD_SIZE = 'many'"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE = '0'"),
    ],
)
def test_an_environment_that_only_speaks_of_several_is_one_line(dpdm, monkeypatch, photos, environment, words):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    code, _, err = dpdm("train", photos, "--run", "r", *PRIOR_ALONE)
    assert (code, err.count("\n")) == (2, 1)
    assert words in err


@pytest.mark.parametrize("home", ["~", "/proc/nobody"], ids=["a user whom nobody knows", "a home that is read-only"])
def test_without_a_home_a_run_is_one_line_and_spends_nothing(dpdm, photos, tmp_path, monkeypatch, home):
    monkeypatch.delenv("DPDM_LEDGER", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: str(path).replace("~", home))
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    code, _, err = dpdm("train", photos, "--run", "r", *PRIOR_ALONE)
    assert (code, err.count("dpdm: ")) == ({"~": 2}.get(home, 1), 1)
    assert "by --ledger or DPDM_LEDGER" in err
    assert not (tmp_path / "r").exists()
    assert not (tmp_path / "~").exists()
    code, _, err = dpdm("train", photos, "--run", "r", "--ledger", "none", *PRIOR_ALONE)
    assert code == 0, err


def test_an_empty_number_of_processes_is_one(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "")
    with hardware.joined_processes() as processes:
        assert processes.size == 1


@pytest.mark.proof
def test_a_terminal_that_is_closed_stops_a_run_with_a_checkpoint(photos, tmp_path):
    """As when ssh ends: the system sends SIGHUP, and nothing can be written any more."""
    line = [sys.executable, "-m", "dpdm", "train", str(photos), "--run", "r", *SMALL, "--set=privacy.steps=900"]
    child, master = pty.fork()
    if child == 0:
        os.chdir(tmp_path)
        os.environ["OMP_NUM_THREADS"] = "1"
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whoever runs the tests may ignore it
        os.execv(sys.executable, line)
    os.set_blocking(master, False)
    metrics = tmp_path / "r" / "private" / "metrics.jsonl"
    until = time.monotonic() + 120
    while not (metrics.exists() and metrics.stat().st_size > 100) and time.monotonic() < until:
        time.sleep(0.02)
        with contextlib.suppress(OSError):
            os.read(master, 10_000)
    os.close(master)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 128 + signal.SIGHUP
    taken = len(metrics.read_text().splitlines())
    entries = [json.loads(text) for text in (tmp_path / "r" / "private" / "journal.jsonl").read_text().splitlines()]
    assert entries[-1]["spent"] == taken + 7, "nothing is lost: the prior's releases came first"


def test_signals_that_end_a_run_and_one_that_nohup_ignores(monkeypatch):
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    assert verbs._stopping() == [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1]
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert signal.SIGHUP not in verbs._stopping()
    finally:
        signal.signal(signal.SIGHUP, before)
