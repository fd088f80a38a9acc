"""What is advised rests on rows of a packaged table, which hold together, and on declared facts."""

import shlex

import pytest
import typer

from dpdm.cli import app
from dpdm.methods import ImageFacts
from dpdm.methods.registry import METHODS
from dpdm.runs import advice
from dpdm.runs.advice import Case, Row, Way, advise, left_out, measured

TEN = tuple("0123456789")
GREY, COLOUR = ImageFacts((1, 28, 28), TEN), ImageFacts((3, 32, 32), TEN)


def case(facts=GREY, number=60_000, epsilon=1.0, **more):
    return Case("photos", facts, number, epsilon, **more)


def test_each_row_is_of_a_way_and_each_way_of_a_method():
    ways, rows = measured()
    names = [way.name for way in ways]
    assert len(set(names)) == len(names)
    assert {row.way for row in rows} <= set(names)
    assert {way.method for way in ways} <= set(METHODS)
    for row in rows:
        assert 0 < row.cnn < 100
        assert row.number > 0
        assert row.minutes is None or row.minutes > 0
        public = next(way.public for way in ways if way.name == row.way)
        assert row.public is not None if public else row.public in (None, "shapes"), row  # which a program draws


@pytest.mark.parametrize("facts", [GREY, COLOUR], ids=["grey", "colour"])
def test_every_command_is_one_that_there_is(facts):
    verbs = typer.main.get_command(app)
    for choice in advise(case(facts, public="my photos", settings=("data.size=28",))):
        for command in choice.commands:
            name, verb, *rest = shlex.split(command)
            assert name == "dpdm"
            verbs.commands[verb].make_context(verb, [*rest])
            assert "data.size=28" in rest
            assert ("--dataset-size" in rest) == (verb == "train")


def test_the_way_that_gained_most_is_first_and_what_does_not_fit_is_last(monkeypatch):
    ways = tuple(Way(name=name, what="", commands=("dpdm train {target}",)) for name in "abc")
    same = {"images": "any", "number": 1000, "channels": 1, "epsilon": 1.0, "protocol": "", "measured": ""}
    rows = tuple(
        Row(way=way, cnn=cnn, prior=50.0, minutes=minutes, **same)
        for way, cnn, minutes in (("a", 51.0, 5), ("b", 60.0, 50), ("c", 55.0, 5))
    )
    monkeypatch.setattr(advice, "measured", lambda: (ways, rows))
    asked = case(number=1000)
    assert [choice.way.name for choice in advise(asked)] == ["b", "c", "a"]
    short = advise(asked._replace(minutes=10))
    assert [choice.way.name for choice in short] == ["c", "a", "b"]
    assert short[-1].against == "took 50 minutes at least, and 10 are asked for"
    colour = advise(asked._replace(facts=COLOUR))
    assert {choice.against for choice in colour} == {"not measured on colour images"}


def test_rows_are_those_whose_signal_is_nearest(monkeypatch):
    way = Way(name="a", what="", commands=())
    same = {"way": "a", "images": "any", "channels": 1, "protocol": "", "measured": "", "minutes": 1, "cnn": 50.0}
    rows = [Row(number=number, epsilon=epsilon, **same) for number, epsilon in ((1000, 1), (1000, 3), (1000, 10))]
    monkeypatch.setattr(advice, "measured", lambda: ((way,), tuple(rows)))
    told = {number: advise(case(number=number))[0].rows for number in (1000, 10_000, 10**6)}
    assert told == {1000: tuple(rows[:2]), 10_000: tuple(rows[1:]), 10**6: (rows[2],)}


def test_rows_of_the_same_images_go_before_those_of_others(monkeypatch):
    way = Way(name="a", what="", commands=())
    same = {"way": "a", "channels": 1, "protocol": "", "measured": "", "cnn": 50.0, "number": 60_000, "epsilon": 1.0}
    mnist, fashion = (Row(images=images, **same) for images in ("MNIST", "Fashion-MNIST"))
    monkeypatch.setattr(advice, "measured", lambda: ((way,), (mnist, fashion)))
    told = {source: advise(case(source=source))[0].rows for source in ("mnist:test", "fashion-mnist", "scans/")}
    assert told == {"mnist:test": (mnist,), "fashion-mnist": (fashion,), "scans/": (mnist, fashion)}


def test_ways_that_lack_something_are_named_with_what_they_lack():
    without = {way.name: reason for way, reason in left_out(case())}
    assert without["evolution"] == "needs public images: name some by --public"
    unlabelled = case(ImageFacts((1, 28, 28), ()), public="fonts")
    assert {way.name for way, _ in left_out(unlabelled)} == {"labels"}
    assert not {choice.way.name for choice in advise(case())} & set(without)
