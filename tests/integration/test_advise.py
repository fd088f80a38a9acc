import json

import pytest

from dpdm.config import Data


@pytest.fixture(autouse=True)
def _no_image_is_opened(monkeypatch):
    monkeypatch.setattr(Data, "open", lambda self: pytest.fail("no image must be opened"))


def test_advice_for_a_preset(dpdm):
    code, out, _ = dpdm("advise", "mnist-cpu", "--epsilon", 1, "--public", "fonts")
    assert code == 0
    assert out.startswith("for         60,000 images, 28 × 28, grey, 10 classes; ε = 1")
    assert "$ dpdm train mnist-cpu --method prior --epsilon 1" in out
    assert "against the prior alone" in out


def test_what_was_measured_on_the_same_images_comes_first(dpdm):
    """Poses apart, and far starts, are better on digits, and worse on garments."""
    code, out, _ = dpdm("advise", "fashion-mnist-cpu", "--epsilon", 1, "--public", "fonts+shapes", "--json")
    assert code == 0
    ways = [way["way"] for way in json.loads(out)["ways"]]
    assert ways[0] == "prior"
    assert max(map(ways.index, ("start", "poses", "diffusion"))) < min(map(ways.index, ("posed-start", "drawn-start")))


def test_advice_for_a_declaration_as_json(dpdm, photos):
    facts = [
        "--dataset-size",
        50_000,
        "--set",
        "data.size=32",
        "--set",
        "data.channels=3",
        "--set",
        "data.num_classes=10",
    ]
    code, out, _ = dpdm("advise", photos, "--epsilon", 10, *facts, "--json")
    assert code == 0
    report = json.loads(out)
    assert report["ways"][0]["way"] == "prior"
    assert {each["way"] for each in report["left_out"]} >= {"labels", "start"}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--epsilon", 1], "--set data.size=32 --set data.channels=3 --set data.num_classes=10 --dataset-size 10000"),
        (
            ["--epsilon", 1, "--set", "data.size=9", "--set", "data.channels=1", "--set", "data.num_classes=0"],
            "--dataset-size",
        ),
        (["--epsilon", 1, "--minutes", 0], "minutes"),
        ([], "--epsilon"),
    ],
)
def test_what_is_missing_is_asked_for_in_one_line(dpdm, photos, given, said):
    code, _, err = dpdm("advise", photos, *given)
    assert code == 2
    assert said in err
    assert err.count("\n") == 1


def test_what_is_for_grey_images_is_not_advised_for_others(dpdm):
    code, out, _ = dpdm("advise", "cifar10-cpu", "--epsilon", 1, "--public", "shapes", "--json")
    assert code == 0
    report = json.loads(out)
    assert "codec.kind=pose" not in json.dumps(report["ways"])
    assert {"way": "poses", "reason": "is for grey images"} in report["left_out"]
