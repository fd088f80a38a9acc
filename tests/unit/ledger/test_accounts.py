"""What a ledger lets pass, refuses, and remembers."""

import re
from dataclasses import asdict
from datetime import datetime, timedelta

import numpy as np
import pytest

from dpdm.ledger import Ledger, Records, RunIdentity
from dpdm.ledger.account import whole_percent
from dpdm.ledger.entries import Registered, Reserved, encode_events
from dpdm.ledger.records import fingerprint
from dpdm.privacy import DPSGD, GaussianRelease, accounting
from dpdm.privacy.accounting import PoissonGaussianSteps, epsilon
from dpdm.types import InputError

IMAGES = np.arange(6 * 64, dtype=np.uint8).reshape(6, 8, 8, 1)
SCANS = Records("scans", IMAGES)


def plan(*multipliers, relation="add_or_remove_one", steps=0, noise=None, unit="image"):
    releases = {f"sum {number}": noise for number, noise in enumerate(multipliers)}
    return DPSGD(
        dataset_size=1000,
        expected_batch_size=100,
        steps=steps,
        noise_multiplier=noise,
        delta=1e-5,
        relation=relation,
        releases=releases,
        unit=unit,
    )


RUN = plan(10.0)  # ε of about 0.38


class Later(datetime):
    """A clock that shows next year."""

    @classmethod
    def now(cls, zone):
        return super().now(zone) + timedelta(days=366)


@pytest.fixture
def told():
    return []


@pytest.fixture
def ledger(tmp_path, told):
    return Ledger(str(tmp_path / "ledger.sqlite"), tell=told.append)


@pytest.fixture
def of_two(ledger):
    """A ledger with a total that some runs fit into."""
    ledger.register(SCANS, epsilon=2.0, delta=1e-5, relation="add_or_remove_one")
    return ledger


def until_full(ledger, run=RUN):
    """Begin runs until one is refused; return how many began."""
    for number in range(1000):
        try:
            ledger.reserve(f"run {number}", run, SCANS, place=f"runs/{number}")
        except InputError:
            return number
    raise AssertionError("nothing was ever refused")


@pytest.mark.parametrize(("share", "said"), [(0.004, 1), (0.996, 100), (0.07, 7), (0.0, 0), (1.0, 100)])
def test_what_is_spent_is_said_upwards_and_what_is_left_downwards(share, said):
    """Kind: a share to the nearest, by which 99.6 % left would be 100 %."""
    assert whole_percent(share) == said


def test_a_first_run_registers_the_data_set_with_its_own_claim(ledger, told):
    ledger.reserve("a", RUN, SCANS, place="runs/a")
    account = ledger.account("scans")
    assert account.epsilon == pytest.approx(RUN.epsilon())
    assert (account.delta, account.relation, account.unit) == (1e-5, "add_or_remove_one", "one image")
    assert "scans is new" in told[0]
    with pytest.raises(InputError, match="100 % is spent or reserved"):
        ledger.reserve("b", RUN, SCANS, place="runs/b")
    assert len(ledger.account("scans").reservations) == 1


def test_runs_pass_until_the_total_is_reached_and_stay_within_it(of_two):
    began = until_full(of_two)
    assert began > 10
    all_of_them = RUN.events() * began
    whole = epsilon(all_of_them, delta=1e-5, relation="add_or_remove_one")
    assert whole <= 2.0
    assert of_two.account("scans").epsilon_if_planned == pytest.approx(whole, rel=1e-3)
    assert until_full(of_two) == began, "the same runs again are the same reservations"
    with pytest.raises(InputError, match="does not fit"):
        of_two.reserve("one more", RUN, SCANS, place="runs/more")


def test_a_run_is_of_one_data_set(of_two):
    faces = Records("faces", IMAGES + 1)
    of_two.register(faces, epsilon=2.0, delta=1e-5, relation="add_or_remove_one")
    of_two.reserve("run 7", RUN, SCANS, place="runs/7")
    with pytest.raises(InputError, match="another data set"):
        of_two.reserve("run 7", RUN, faces, place="runs/7")


def test_a_run_that_goes_on_with_more_images_makes_them_known(of_two):
    of_two.reserve("a", RUN, SCANS, place="runs/a")
    of_two.reserve("a", RUN, Records("scans", IMAGES[1:]), place="runs/a")
    with pytest.raises(InputError, match="registered as scans"):
        of_two.reserve("b", RUN, Records("other", IMAGES[1:]), place="runs/b")


def test_a_total_that_is_raised_fits_as_many_runs_as_one_that_was_given_at_first(ledger, tmp_path):
    ledger.reserve("first", RUN, SCANS, place="")
    ledger.change_total("scans", epsilon=10.0)
    at_once = Ledger(str(tmp_path / "other.sqlite"))
    at_once.register(SCANS, epsilon=10.0, delta=1e-5, relation="add_or_remove_one")
    at_once.reserve("first", RUN, SCANS, place="")
    more, of_other = (book.account("scans").more_runs(epsilon=1.0) for book in (ledger, at_once))
    assert more == of_other > 20


def test_nothing_is_told_of_a_run_that_is_refused(of_two, told):
    with pytest.raises(InputError, match="registered as scans"):
        of_two.reserve("a", RUN, Records("other", IMAGES), place="")
    assert told == []


def test_how_long_a_search_took_is_not_in_the_book(of_two, monkeypatch):
    """It would tell how many runs it had."""
    from dpdm.ledger import entries
    from dpdm.privacy.search import Search

    search = DPSGD(
        dataset_size=1000,
        expected_batch_size=100,
        steps=0,
        delta=1e-5,
        releases={"first": 20.0},
        search=Search(mean=3),
    )
    of_two.reserve("a", search, SCANS, place="")
    (began,) = [e.content["at"] for e in of_two.storage.entries() if e.content["kind"] == "reserved"]
    monkeypatch.setattr(entries, "datetime", Later)
    of_two.complete("a", search.events())
    assert of_two.storage.entries()[-1].content["at"] == began


def test_runs_whose_epsilon_is_tiny_are_counted_too(ledger):
    tiny = plan(4000.0)
    assert tiny.epsilon() < 0.002
    ledger.reserve("a", tiny, SCANS, place="")
    with pytest.raises(InputError, match="does not fit"):
        ledger.reserve("b", tiny, SCANS, place="")


def test_a_run_that_is_completed_with_less_gives_the_rest_back(of_two):
    began = until_full(of_two)
    of_two.complete("run 0", [])
    of_two.complete("run 0", [])
    of_two.reserve("again", RUN, SCANS, place="runs/again")
    assert len(of_two.account("scans").reservations) == began + 1
    with pytest.raises(InputError, match="cannot go on"):
        of_two.reserve("run 0", RUN, SCANS, place="runs/0")


def test_a_run_cannot_have_released_more_than_it_reserved(of_two):
    of_two.reserve("a", RUN, SCANS, place="runs/a")
    with pytest.raises(InputError, match="reserved less"):
        of_two.complete("a", plan(9.9).events())
    with pytest.raises(InputError, match="no reservation"):
        of_two.complete("unheard of", [])
    with pytest.raises(InputError, match="reserved less"):
        of_two.complete("a", plan(10.1).events())
    of_two.complete("a", [])
    with pytest.raises(InputError, match="completed or settled"):
        of_two.complete("a", RUN.events())


def test_a_run_may_have_taken_fewer_of_its_steps(of_two):
    run = plan(30.0, 40.0, steps=50, noise=4.0)
    for number, made in enumerate((0, 1, 2, 30, 52)):
        of_two.reserve(f"run {number}", plan(30.0, 40.0, steps=50, noise=4.0 + number), SCANS, place="")
        with pytest.raises(InputError, match="reserved less"):
            of_two.complete(f"run {number}", [*run.events(), GaussianRelease(noise_multiplier=99.0)])
        planned = plan(30.0, 40.0, steps=50, noise=4.0 + number)
        of_two.complete(f"run {number}", planned.events(made=made))
    steps = [event for event in of_two.account("scans").events if isinstance(event, PoissonGaussianSteps)]
    assert [event.steps for event in steps] == [28, 50]


def test_a_step_that_was_not_reserved_is_refused_at_every_total(ledger):
    """At no order that a filter may have can one kind of event pass for another."""
    ledger.register(SCANS, epsilon=0.2, delta=1e-5, relation="add_or_remove_one")
    ledger.reserve("a", plan(40.0), SCANS, place="")
    with pytest.raises(InputError, match="reserved less"):
        ledger.complete("a", [PoissonGaussianSteps(noise_multiplier=1.5, sample_rate=0.01, steps=1)])


def test_a_run_that_goes_on_must_be_the_one_that_began(of_two):
    of_two.reserve("a", RUN, SCANS, place="runs/a")
    with pytest.raises(InputError, match="other events"):
        of_two.reserve("a", plan(11.0), SCANS, place="runs/a")


def test_steps_on_batches_are_counted_too(of_two):
    run = plan(steps=50, noise=4.0)
    began = until_full(of_two, run)
    events = [PoissonGaussianSteps(noise_multiplier=4.0, sample_rate=0.1, steps=50)] * began
    assert began > 1
    assert 1.5 < epsilon(events, delta=1e-5, relation="add_or_remove_one") <= 2.0


def test_what_others_released_enters_as_it_is(of_two):
    before = of_two.account("scans").more_runs(epsilon=0.38)
    of_two.enter("scans", what="a table of counts", epsilon=0.5, delta=5e-7)
    account = of_two.account("scans")
    assert account.more_runs(epsilon=0.38) < before
    assert account.epsilon_if_planned == pytest.approx(0.5)
    with pytest.raises(InputError, match="of which a tenth is for releases with a δ of their own"):
        of_two.enter("scans", what="too large a δ", epsilon=0.1, delta=6e-7)
    with pytest.raises(InputError, match="does not fit"):
        of_two.enter("scans", what="too large an ε", epsilon=2.0, delta=0.0)
    for wrong in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(InputError, match="epsilon"):
            of_two.enter("scans", what="impossible", epsilon=wrong, delta=0.0)
    assert len(of_two.account("scans").entered) == 1


def test_claims_of_two_kinds_do_not_mix(of_two):
    with pytest.raises(InputError, match="two kinds"):
        of_two.reserve("a", plan(10.0, relation="replace_special"), SCANS, place="runs/a")
    with pytest.raises(InputError, match="private data set"):
        of_two.reserve("a", RUN, Records("scans", IMAGES, public=True), place="runs/a")


def test_public_data_is_counted_and_not_limited(ledger):
    digits = Records("digits", IMAGES, public=True)
    for number in range(5):
        ledger.reserve(f"run {number}", plan(0.5), digits, place="")
    account = ledger.account("digits")
    assert account.total == float("inf")
    assert len(account.reservations) == 5
    with pytest.raises(InputError, match="public data set"):
        ledger.reserve("mine", RUN, Records("digits", IMAGES), place="")
    with pytest.raises(InputError, match="no total"):
        ledger.change_total("digits", epsilon=1.0)


@pytest.mark.parametrize("name", ["ours", "digits", "digits (2)", "MNIST (1)"])
def test_no_total_is_given_to_images_that_were_declared_public(ledger, name):
    """What was spent on them, nobody limited, whatever name they had; and a total is not left by another name."""
    ours = Records(name, IMAGES, public=True)
    ledger.reserve("a", RUN, ours, place="")
    with pytest.raises(InputError, match="were declared public as " + re.escape(name)):
        ledger.register(Records("new", IMAGES), epsilon=2.0, delta=1e-5, relation="add_or_remove_one")
    with pytest.raises(InputError, match="were declared public as " + re.escape(name)):
        ledger.reserve("b", RUN, Records("new", IMAGES[::-1].copy()), place="")
    ledger.reserve("c", RUN, ours, place="")
    ledger.register(Records("faces", IMAGES + 1), epsilon=2.0, delta=1e-5, relation="add_or_remove_one")
    for other in (name, "others"):
        with pytest.raises(InputError, match="are registered as faces"):
            ledger.reserve("d", RUN, Records(other, IMAGES + 1, public=True), place="")


def test_records_are_known_again_under_another_name_and_in_another_order(of_two):
    with pytest.raises(InputError, match="registered as scans"):
        of_two.reserve("a", RUN, Records("other", IMAGES[::-1].copy()), place="runs/a")
    of_two.reserve("a", RUN, Records("other", IMAGES + 1), place="runs/a")


def test_other_records_under_the_same_name_share_its_total(of_two, told):
    of_two.reserve("a", RUN, Records("scans", IMAGES[1:]), place="runs/a")
    assert "other records than before" in told[0]
    assert len(of_two.account("scans").reservations) == 1
    of_two.register(Records("other", IMAGES[:3]), epsilon=2.0, delta=1e-5, relation="add_or_remove_one")
    with pytest.raises(InputError, match="registered as scans"):
        of_two.reserve("b", RUN, Records("other", IMAGES), place="runs/b")
    with pytest.raises(InputError, match="registered as scans"):
        of_two.register(Records("new", IMAGES[1:]), epsilon=1.0, delta=1e-5, relation="add_or_remove_one")


def test_the_digest_of_records_depends_on_the_ledger(ledger, tmp_path):
    other = Ledger(str(tmp_path / "other.sqlite"))

    def digest(book, images):
        return fingerprint(Records("scans", images), book.storage.key()).records

    assert digest(ledger, IMAGES) == digest(ledger, IMAGES[::-1]) != digest(other, IMAGES)
    assert digest(ledger, IMAGES) != digest(ledger, IMAGES.reshape(6, 16, 4, 1)), "another shape is another image"


def test_the_same_images_in_other_groups_are_refused_until_their_owner_allows_it(ledger):
    """A claim about visits says little of persons: the two must not be added up as one."""
    by_person = Records("scans", IMAGES, np.array([0, 0, 1, 1, 2, 2]))
    in_another_order = Records("scans", IMAGES[::-1].copy(), np.array([1, 1, 2, 2, 0, 0]))
    by_visit = Records("scans", IMAGES, np.array([0, 1, 2, 3, 4, 5]))
    ledger.register(by_person, epsilon=2.0, delta=1e-5, relation="add_or_remove_one", unit="one group of images")
    run = plan(10.0, unit="group")
    ledger.reserve("a", run, by_person, place="runs/a")
    ledger.reserve("b", run, in_another_order, place="runs/b")
    with pytest.raises(InputError, match="other groups before"):
        ledger.reserve("c", run, by_visit, place="runs/c")
    with pytest.raises(InputError, match="other groups before"):
        ledger.reserve("a", run, by_visit, place="runs/a")
    ledger.allow_other_groups("scans")
    ledger.reserve("c", run, by_visit, place="runs/c")
    with pytest.raises(InputError, match="other groups before"):
        ledger.reserve("d", run, by_person, place="runs/d")
    assert len(ledger.account("scans").reservations) == 3


def test_public_data_is_counted_for_each_kind_of_claim(ledger):
    digits = Records("digits", IMAGES, public=True)
    ledger.reserve("a", RUN, digits, place="")
    ledger.reserve("b", plan(10.0, relation="replace_special"), digits, place="")
    ledger.reserve("c", plan(10.0, relation="replace_special"), digits, place="")
    ledger.complete("b", plan(10.0, relation="replace_special").events())
    assert {name: len(account.reservations) for name, account in ledger.accounts().items()} == {
        "digits": 1,
        "digits (replace_special of one image)": 2,
    }


def test_a_total_is_given_once_and_changed_by_its_own_verb(of_two):
    with pytest.raises(InputError, match="registered already"):
        of_two.register(SCANS, epsilon=9.0, delta=1e-5, relation="add_or_remove_one")
    began = until_full(of_two)
    of_two.change_total("scans", epsilon=4.0)
    assert until_full(of_two) > began
    shares = [spent.share for spent in of_two.history("scans")]
    assert max(shares) <= 1.0
    assert [spent.what for spent in of_two.history("scans")].count("total of ε = 4") == 1
    with pytest.raises(InputError, match="epsilon"):
        of_two.change_total("scans", epsilon=float("nan"))


def test_the_default_place(monkeypatch, tmp_path):
    monkeypatch.setenv("DPDM_LEDGER", "none")
    assert Ledger.default() is None
    assert Ledger.default("here.sqlite") == Ledger("here.sqlite")
    monkeypatch.setenv("DPDM_LEDGER", "postgresql+psycopg://team@server/dpdm")
    assert Ledger.default() == Ledger("postgresql+psycopg://team@server/dpdm")
    monkeypatch.delenv("DPDM_LEDGER")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert Ledger.default() == Ledger(str(tmp_path / "dpdm" / "ledger.sqlite"))


def test_a_run_that_has_begun_must_be_in_the_ledger_it_began_in(of_two, tmp_path):
    of_two.reserve("a", RUN, SCANS, place="runs/a")
    of_two.reserve("a", RUN, SCANS, place="runs/a", begun=True)
    with pytest.raises(InputError, match="another ledger"):
        Ledger(str(tmp_path / "other.sqlite")).reserve("a", RUN, SCANS, place="runs/a", begun=True)


@pytest.mark.parametrize("first", ["image", "group"])
def test_claims_about_images_and_about_groups_are_of_two_kinds(ledger, first):
    second = {"image": "group", "group": "image"}[first]
    ledger.reserve("a", plan(10.0, unit=first), SCANS, place="runs/a")
    assert ledger.account("scans").unit == plan(10.0, unit=first).one_unit
    ledger.change_total("scans", epsilon=2.0)
    with pytest.raises(InputError, match=r"claims of two kinds do not add up.*data\.group") as caught:
        ledger.reserve("b", plan(10.0, unit=second), SCANS, place="runs/b")
    assert "\n" not in str(caught.value)
    assert len(ledger.account("scans").reservations) == 1


def test_a_copied_run_is_refused_and_a_moved_one_goes_on(of_two, tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    (old / "private").mkdir(parents=True)
    began = RunIdentity("a", []).started(old / "private")
    of_two.reserve("a", RUN, SCANS, place=str(old), token="1")
    with pytest.raises(InputError, match="is a copy of"):
        of_two.reserve("a", RUN, SCANS, place=str(new), token="2", tokens_before=["1"], begun=True)
    old.rename(new)
    (old / "private").mkdir(parents=True)
    RunIdentity("another run", []).started(old / "private")
    assert RunIdentity.read(new / "private") == began
    of_two.reserve("a", RUN, SCANS, place=str(new), token="2", tokens_before=["1"], begun=True)
    (reservation,) = of_two.account("scans").reservations.values()
    assert (reservation.run, reservation.place, reservation.token) == ("a", str(new), "2")


def test_a_copy_on_another_machine_that_stayed_behind_is_refused(of_two):
    of_two.reserve("a", RUN, SCANS, place="/there/run", token="1")
    of_two.reserve("a", RUN, SCANS, place="/there/run", token="2", tokens_before=["1"])
    with pytest.raises(InputError, match="is a copy of"):
        of_two.reserve("a", RUN, SCANS, place="/here/run", token="3", tokens_before=["1"])
    with pytest.raises(InputError, match="has gone on since"):
        of_two.complete("a", [], tokens=["1"])
    of_two.reserve("a", RUN, SCANS, place="/there/run", token="4", tokens_before=["1", "2", "lost in a crash"])
    of_two.complete("a", RUN.events(), tokens=["4"])
    with pytest.raises(InputError, match="has gone on since"):
        of_two.complete("a", RUN.events(), tokens=["1"])
    of_two.complete("a", RUN.events(), tokens=["1", "4"])


def test_pld_lets_one_run_in_by_itself_if_it_is_the_first_of_which_something_is_released(of_two):
    """After another one it was chosen with that in view: only the filter may let it in, and it does not."""
    large = DPSGD(
        dataset_size=1000,
        expected_batch_size=100,
        steps=0,
        delta=1e-5,
        releases={"first": 2.05},
    )
    assert 1.85 < large.epsilon() < 2.0
    small = plan(200.0)
    of_two.reserve("a", small, SCANS, place="")
    with pytest.raises(InputError, match="it does not fit"):
        of_two.reserve("b", large, SCANS, place="")
    of_two.complete("a", [])
    of_two.reserve("b", large, SCANS, place="")
    with pytest.raises(InputError, match="it does not fit"):
        of_two.reserve("c", small, SCANS, place="")
    of_two.complete("b", [])
    of_two.reserve("c", large, SCANS, place="")


def test_a_run_that_pld_alone_let_in_counts_in_full_once_anything_is_released(ledger):
    """No filter covered it while it might still have released all."""
    run = plan(2.0, 2.0)
    ledger.reserve("a", run, SCANS, place="")
    ledger.complete("a", run.events(made=1))
    assert ledger.account("scans").share == 1.0
    with pytest.raises(InputError, match="does not fit"):
        ledger.reserve("b", plan(100.0), SCANS, place="")


def test_how_many_more_runs_fit_is_what_passes(of_two, tmp_path):
    """Of the first run PLD decides, even where the filter lets in none."""
    account = of_two.account("scans")
    assert account.more_runs(epsilon=RUN.epsilon()) == until_full(of_two)
    assert [account.more_runs(epsilon=each) for each in (1.99, 2.0, 2.01)] == [1, 1, 0]


def test_a_total_that_is_lowered_lets_nothing_more_in(of_two):
    of_two.reserve("a", RUN, SCANS, place="")
    of_two.change_total("scans", epsilon=0.01)
    account = of_two.account("scans")
    assert account.share == 1.0
    assert account.more_runs(epsilon=0.1) == 0
    with pytest.raises(InputError, match="it does not fit"):
        of_two.reserve("b", plan(1000.0), SCANS, place="")


@pytest.mark.parametrize(
    "spoil",
    [
        lambda book: book.register(Records("x", IMAGES + 9), epsilon=1.0, delta=1e-5, relation="add_or_remove"),
        lambda book: book.enter("scans", what=2026, epsilon=0.1, delta=0.0),
    ],
)
def test_what_nobody_could_read_again_is_not_written(of_two, spoil):
    with pytest.raises(InputError):
        spoil(of_two)
    assert list(of_two.accounts()) == ["scans"]


PERSONS = Records("scans", IMAGES, np.arange(len(IMAGES)) // 2)
BY_PERSON = plan(10.0, unit="group")


def test_a_run_about_persons_after_images_were_registered_says_what_can_be_done(of_two):
    """Nothing spent: register anew. Reserved or spent: other images, on which nothing is."""

    def refused():
        with pytest.raises(InputError, match=r"do not add up; give data\.group as before, or") as error:
            of_two.reserve("persons", BY_PERSON, PERSONS, place="runs/persons")
        return str(error.value)

    assert "or register it again with the settings of this run: dpdm ledger register" in refused()
    of_two.register(PERSONS, epsilon=3.0, delta=1e-5, relation="add_or_remove_one", unit=BY_PERSON.one_unit)
    account = of_two.account("scans")
    assert (account.unit, account.epsilon, account.untouched) == (BY_PERSON.one_unit, 3.0, True)
    of_two.reserve("persons", BY_PERSON, PERSONS, place="runs/persons")
    with pytest.raises(InputError, match="take images that nothing was spent on"):
        of_two.reserve("images", RUN, SCANS, place="runs/images")
    with pytest.raises(InputError, match="registered already"):
        of_two.register(SCANS, epsilon=3.0, delta=1e-5, relation="add_or_remove_one")


def test_other_images_of_the_same_name_do_not_take_the_place_of_a_registration(of_two):
    others = Records("scans", 255 - IMAGES, PERSONS.groups)
    with pytest.raises(InputError, match="registered already"):
        of_two.register(others, epsilon=3.0, delta=1e-5, relation="add_or_remove_one", unit=BY_PERSON.one_unit)
    assert of_two.account("scans").unit == "one image"


def test_a_history_of_many_runs_computes_the_divergences_of_each_once(ledger, monkeypatch):
    """Each line of it adds up all runs so far: their number times the number of lines would be hours for a thousand."""
    computed = []
    compose = accounting._compose
    monkeypatch.setattr(accounting, "_compose", lambda a, events: computed.extend(events) or compose(a, events))
    accounting._rdp_of.cache_clear()
    accounting._epsilon.cache_clear()
    for number in range(6):
        steps = PoissonGaussianSteps(noise_multiplier=9.0 + number, sample_rate=0.01, steps=3)
        decisions = [Reserved(dataset="scans", reservation=f"r{number}", planned="", events=encode_events([steps]))]
        if not number:
            decisions.insert(0, Registered.total("scans", 9.0, 1e-5, "add_or_remove_one", "one image"))
        ledger.storage.append(lambda entries, made=decisions: [asdict(each) for each in made])
    assert len(ledger.history("scans")) == 6
    steps = [event for event in computed if isinstance(event, PoissonGaussianSteps)]
    assert len(steps) <= 3 * 6, "at all orders, at that of the filter, and as a privacy loss distribution"
