"""A benchmark is one by the first entry of its records, for good, and one account adds up all of its runs."""

import dataclasses
from dataclasses import asdict

import numpy as np
import pytest

from dpdm.ledger import Ledger, Records, entries
from dpdm.ledger.account import read_accounts
from dpdm.privacy import DPSGD
from dpdm.privacy.search import Search
from dpdm.runs.benchmark import Benchmark
from dpdm.types import InputError

IMAGES = np.arange(6 * 64, dtype=np.uint8).reshape(6, 8, 8, 1)
PUBLIC, PRIVATE = Records("shared", IMAGES, public=True), Records("scans", IMAGES)
KIND = {"delta": 1e-5, "relation": "add_or_remove_one"}
RUN = DPSGD(dataset_size=1000, expected_batch_size=100, steps=0, delta=1e-5, releases={"sum": 10.0})


@pytest.fixture
def ledger(tmp_path):
    return Ledger(str(tmp_path / "ledger.sqlite"), tell=lambda line: None)


@pytest.fixture
def benchmark(ledger):
    ledger.declare_benchmark(PUBLIC, **KIND)
    return ledger


def kinds(ledger):
    return [entry.content["kind"] for entry in ledger.storage.entries()]


def test_the_first_entry_makes_it_one_and_saying_so_again_changes_nothing(benchmark):
    assert kinds(benchmark) == ["registered", "benchmark", "records"]
    benchmark.declare_benchmark(PUBLIC, **KIND)
    assert kinds(benchmark) == ["registered", "benchmark", "records"]
    assert benchmark.account("shared").benchmark


def test_all_of_its_runs_are_added_up(benchmark):
    for run in ("a", "b"):
        benchmark.reserve(run, RUN, PUBLIC, place=run)
        benchmark.complete(run, RUN.events())
    found = Benchmark.of(benchmark.account("shared"))
    assert found.runs == 2
    assert found.epsilon == pytest.approx(benchmark.account("shared").epsilon_if_planned, abs=1e-4)
    assert found.epsilon > 1.3 * RUN.epsilon()
    assert Benchmark.of(None) is None


@pytest.mark.parametrize("before", ["a public run", "a total", "a total under another name"])
def test_records_that_have_other_entries_cannot_become_one(ledger, before):
    if before == "a public run":
        ledger.reserve("a", RUN, PUBLIC, place="a")
    else:
        name = "shared" if before == "a total" else "scans"
        ledger.register(Records(name, IMAGES), epsilon=1.0, **KIND)
    with pytest.raises(InputError, match="only its first entry can make it one"):
        ledger.declare_benchmark(PUBLIC, **KIND)
    assert "benchmark" not in kinds(ledger)


def test_private_records_cannot_be_one(ledger):
    with pytest.raises(InputError, match="only images that are declared public"):
        ledger.declare_benchmark(PRIVATE, **KIND)
    assert not ledger.storage.exists or not kinds(ledger)


def test_nothing_undoes_it(benchmark):
    with pytest.raises(InputError, match="registered already"):
        benchmark.register(Records("shared", IMAGES), epsilon=1.0, **KIND)
    with pytest.raises(InputError, match="registered as shared"):
        benchmark.register(PRIVATE, epsilon=1.0, **KIND)
    with pytest.raises(InputError, match="registered as a public data set"):
        benchmark.reserve("a", RUN, Records("shared", IMAGES), place="a")
    with pytest.raises(InputError, match="has no total"):
        benchmark.change_total("shared", epsilon=2.0)
    assert benchmark.account("shared").benchmark


@pytest.mark.parametrize("public", [True, False])
def test_its_images_under_another_name_are_refused(benchmark, public):
    with pytest.raises(InputError, match="registered as shared: go on under that name"):
        benchmark.reserve("a", RUN, Records("mine", IMAGES, public=public), place="a")
    with pytest.raises(InputError, match="registered as shared"):
        benchmark.declare_benchmark(Records("mine", IMAGES[::-1].copy(), public=True), **KIND)


def test_built_in_images_too_cannot_leave_it(ledger):
    """A built-in set that is no benchmark may be registered under a name of one's own: everyone has its images."""
    ledger.declare_benchmark(Records("digits", IMAGES, public=True), **KIND)
    with pytest.raises(InputError, match="registered as digits"):
        ledger.register(PRIVATE, epsilon=1.0, **KIND)


def test_claims_of_two_kinds_and_searches_are_refused(benchmark):
    other = dataclasses.replace(RUN, relation="replace_special", dataset_size=6)
    with pytest.raises(InputError, match="claims of two kinds do not add up"):
        benchmark.reserve("a", other, PUBLIC, place="a")
    with pytest.raises(InputError, match="a benchmark at δ = 1e-05"):
        benchmark.reserve("c", dataclasses.replace(RUN, delta=1e-4), PUBLIC, place="c")
    search = dataclasses.replace(RUN, search=Search(mean=3.0))
    with pytest.raises(InputError, match="search on other images"):
        benchmark.reserve("b", search, PUBLIC, place="b")
    assert kinds(benchmark) == ["registered", "benchmark", "records"]


def test_a_chain_in_which_it_became_one_late_or_twice_is_damaged():
    new = entries.Registered.total("shared", None, 1e-5, "add_or_remove_one", "one image")
    seen = entries.RecordsSeen(dataset="shared", records={"digest": ""})
    late = entries.BenchmarkDeclared(dataset="shared")
    assert read_accounts([new, late, seen])["shared"].benchmark
    for chain in ([new, seen, late], [new, late, new], [dataclasses.replace(new, epsilon=1.0, order=9.0), late]):
        with pytest.raises(InputError, match="the ledger is damaged"):
            read_accounts(chain)


def test_entries_of_before_read_as_they_did():
    """What an earlier version wrote has no benchmark in it, and no entry has a field more."""
    new = entries.Registered.total("shared", None, 1e-5, "add_or_remove_one", "one image")
    assert sorted(asdict(new)) == ["at", "dataset", "delta", "epsilon", "kind", "order", "relation", "unit"]
    assert not read_accounts([entries.decode_statement(asdict(new), number=1)])["shared"].benchmark


OTHERS = 255 - IMAGES


@pytest.mark.parametrize("runs", [0, 2])
def test_other_images_under_its_name_are_refused(ledger, runs):
    for number in range(runs):
        ledger.reserve(f"{number}", RUN, Records("others", OTHERS, public=True), place="there")
    ledger.declare_benchmark(PUBLIC, **KIND)
    with pytest.raises(InputError, match=r"a benchmark of other images|only its first entry"):
        ledger.declare_benchmark(Records("shared", OTHERS, public=True), **KIND)
    with pytest.raises(InputError, match="a benchmark of other images"):
        ledger.reserve("a", RUN, Records("shared", OTHERS, public=True), place="a")
    assert not ledger.account("shared").reservations


def test_images_that_have_runs_elsewhere_do_not_join_it_by_what_both_are_known_by(ledger):
    """As arrays they were known by pixels at one size, and as files of another size they are the benchmark's."""
    files, framed = np.full((6, 1, 32), 7, np.uint8), OTHERS
    ledger.reserve("a", RUN, Records("others", framed, public=True), place="a")
    ledger.declare_benchmark(Records("shared", IMAGES, public=True, sources=files), **KIND)
    with pytest.raises(InputError, match="have entries as others too, which its sum lacks"):
        ledger.reserve("b", RUN, Records("shared", framed, public=True, sources=files), place="b")


def test_other_releases_leave_most_of_its_delta(benchmark):
    benchmark.enter("shared", what="counts", epsilon=0.5, delta=1e-6)
    for delta in (1e-7, 1e-5, 0.5):
        with pytest.raises(InputError, match="a benchmark at δ = 1e-05, of which a tenth"):
            benchmark.enter("shared", what="more", epsilon=0.5, delta=delta)
    assert Benchmark.of(benchmark.account("shared")) == (1, 0.5, 1e-5)
