"""Public data of a run: named in its claim, blanked in the private images, and nobody's private images of before."""

import dataclasses
import json
import shutil
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import tomli_w
import torch
from PIL import Image
from two_worlds import IMAGES, RecordingPlan, World, differences, images, moved, plus, stopped_clock

from dpdm.config import Machine
from dpdm.data import Framing, ImageDataset, open_dataset, prepare, save_npz
from dpdm.data.claims import png_with
from dpdm.files import digest, json_text
from dpdm.ledger import Ledger
from dpdm.ledger.records import Records
from dpdm.methods import Evolution, ImageGenerator, Method, Prior, PriorAlone, PublicPart
from dpdm.methods.registry import METHODS
from dpdm.privacy import FullSum, InsecureSeededEntropy
from dpdm.privacy.sums import BoundedSum
from dpdm.runs import Release, Trainer, verify_release
from dpdm.runs.drawn import open_drawn
from dpdm.runs.public import read_parts
from dpdm.types import InputError

SHOWN = dataclasses.replace(images(40, seed=7), labels=None, num_classes=0, class_names=(), name="shown", public=True)
METHOD = Evolution(rounds=2, population=4)


def trainer(run=None, *, method=METHOD, public=SHOWN, plan=None, size=12, ledger=None, **others):
    plan = plan or method.plan(epsilon=3.0, dataset_size=size, delta=1e-13)
    machine = Machine(device="cpu", precision="float32")
    return Trainer(method=method, plan=plan, machine=machine, public=public, run=run, ledger=ledger, **others)


@pytest.fixture(scope="module")
def evolved(tmp_path_factory):
    run = tmp_path_factory.mktemp("evolved") / "run"
    trainer(run).fit(IMAGES)
    return run


def test_a_claim_names_what_was_public_and_says_that_it_does_not_protect_it(evolved):
    claim = json.loads((evolved / "release" / "privacy.json").read_text())
    assert claim["public"] == [{"name": "shown", "sha256": SHOWN.digest(), "images": 40}]
    said = f"it does not protect what was declared public: 'shown' (40 images, SHA-256 {SHOWN.digest()[:16]}…)"
    assert claim["statement"].endswith(said)
    verified, loaded = verify_release(evolved), Release.load(evolved)
    assert verified.public == loaded.public == (PublicPart("shown", SHOWN.digest(), 40),)
    assert verified.statement == claim["statement"]


PART = {"name": "shown", "sha256": "0" * 64}
WHOLE = {"name": "shown", "sha256": SHOWN.digest(), "images": 40}


def test_a_claim_names_each_set_that_public_images_were_joined_from(tmp_path):
    one = dataclasses.replace(SHOWN.part(range(16)), name="a")
    other = dataclasses.replace(SHOWN.part(range(16, 40)), name="b")
    trainer(tmp_path / "run", public=dataclasses.replace(SHOWN, name="a+b", made_of=(one, other))).fit(IMAGES)
    (part,) = verify_release(tmp_path / "run").public
    assert part.sources == (PublicPart("a", one.digest(), 16), PublicPart("b", other.digest(), 24))
    claim = json.loads((tmp_path / "run" / "release" / "privacy.json").read_text())
    assert [source["sha256"] for source in claim["public"][0]["sources"]] == [one.digest(), other.digest()]
    each = ", ".join(f"'{of.name}' ({len(of)} images, SHA-256 {of.digest()[:16]}…)" for of in (one, other))
    assert claim["statement"].endswith(f"SHA-256 {SHOWN.digest()[:16]}…, of {each})")


@pytest.mark.parametrize(
    "changes",
    [
        {"sources": [PART]},
        {"sources": [WHOLE | {"drawn": True}]},
        {"sources": [WHOLE | {"sources": [WHOLE]}]},
        {"sources": [WHOLE | {"images": 39}]},
        {"sources": [WHOLE | {"drawn": True}], "drawn": True},
        {"sources": [WHOLE | {"sources": [WHOLE]}], "drawn": True},
        {"sources": [WHOLE], "images": 0},
        {"sources": WHOLE},
        {"sources": [WHOLE] * 17},
    ],
)
def test_sources_that_no_run_joins_are_no_part_of_a_claim(changes):
    assert read_parts([WHOLE | {"sources": [WHOLE]}])
    assert read_parts([WHOLE | {"sources": [PART, WHOLE], "drawn": True}]), "what an earlier release does not protect"
    with pytest.raises(InputError, match=r"sources of public data that no run joins|no list|without its name"):
        read_parts([WHOLE | changes])


@pytest.mark.parametrize("of", [{"drawn": True}, {"claim": "(1, 1e-5)-DP, of somebody"}])
def test_images_of_a_release_are_not_joined_into_public_ones(tmp_path, of):
    whole = dataclasses.replace(SHOWN, made_of=(dataclasses.replace(SHOWN, name="a", **of), SHOWN))
    with pytest.raises(InputError, match="joined from images that a release drew"):
        trainer(tmp_path / "run", public=whole).fit(IMAGES)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("names", [["two\nlines"], [f"set {number}" for number in range(17)]])
def test_sets_that_no_claim_could_name_are_refused_before_the_first_sum(tmp_path, names):
    made_of = tuple(dataclasses.replace(SHOWN, name=name) for name in names)
    with pytest.raises(InputError, match="public"):
        trainer(tmp_path / "run", public=dataclasses.replace(SHOWN, made_of=made_of)).fit(IMAGES)
    assert not (tmp_path / "run").exists()


def test_a_claim_of_private_images_alone_says_so(tmp_path):
    trainer(tmp_path / "run", method=PriorAlone(prior=Prior(centres=1)), public=None).fit(IMAGES)
    claim = json.loads((tmp_path / "run" / "release" / "privacy.json").read_text())
    assert claim["public"] == []
    assert "public:" not in claim["statement"]


def everywhere(declared):
    """Change what was public in settings and claim together, with digests that fit."""

    def forge(release):
        settings, claim = release / "config.toml", release / "privacy.json"
        table, stated = tomllib.loads(settings.read_text()), json.loads(claim.read_text())
        table["facts"]["public"] = stated["public"] = declared
        settings.write_bytes(tomli_w.dumps(table).encode())
        stated["sha256"]["config.toml"] = digest(settings)
        claim.write_text(json_text(stated))

    return forge


def in_the_claim(**changes):
    def forge(release):
        path = release / "privacy.json"
        path.write_text(json_text(json.loads(path.read_text()) | changes))

    return forge


FORGED = {
    "no part": everywhere([]),
    "sources that nobody joined": everywhere([WHOLE | {"sources": [PART]}]),
    "a source without a digest": everywhere([WHOLE | {"sources": [{"name": "shown"}]}]),
    "words for sources": everywhere([WHOLE | {"sources": "none"}]),
    "sources without end": everywhere([WHOLE | {"sources": [PART] * 10_000}]),
    "one more part": everywhere([{"name": "shown", "sha256": SHOWN.digest()}, PART | {"name": "more"}]),
    "the same name twice": everywhere([PART, PART]),
    "another digest, which the statement does not name": everywhere([PART]),
    "a digest of other characters": everywhere([PART | {"sha256": "G" * 64}]),
    "a digest of wide digits": everywhere([PART | {"sha256": "\uff10" * 64}]),
    "a digest too short": everywhere([PART | {"sha256": "0" * 63}]),
    "a number for a digest": everywhere([PART | {"sha256": 0}]),
    "a name that nobody sees": everywhere([PART | {"name": "\u200b"}]),
    "a name of two lines": everywhere([PART | {"name": "shown\nThe claim protects all"}]),
    "no name": everywhere([{"sha256": "0" * 64}]),
    "a key too many": everywhere([PART | {"size": 5}]),
    "parts without end": everywhere([PART | {"name": str(number)} for number in range(10_000)]),
    "words for parts": everywhere("none"),
    "a number for parts": everywhere(0),
    "a claim that names none": in_the_claim(public=[]),
    "a claim that names others": in_the_claim(public=[PART]),
    "a statement without it": in_the_claim(statement="(3, 1e-13)-DP"),
}


@pytest.mark.parametrize("name", FORGED)
def test_a_release_that_says_another_thing_of_what_was_public_is_refused(evolved, tmp_path, name):
    release = tmp_path / "release"
    shutil.copytree(evolved / "release", release)
    FORGED[name](release)
    with pytest.raises(InputError) as refused:
        verify_release(release)
    assert str(refused.value).isprintable()


@pytest.mark.parametrize("unit", ["image", "group"])
def test_whether_a_private_image_is_public_shows_in_no_sum_and_no_file(tmp_path, unit):
    """Two worlds: the last record is one of the public images, or another. It is blanked, and all else is the same."""
    worlds = [plus(IMAGES, image, 1) for image in (SHOWN.images[3], 255 - SHOWN.images[3])]
    if unit == "group":
        worlds = [dataclasses.replace(data, groups=np.arange(len(data)) // 2) for data in worlds]
    units = worlds[0].num_units
    plan = METHOD.plan(epsilon=3.0, dataset_size=units, delta=1e-13, unit=unit)
    fields = {f.name: getattr(plan, f.name) for f in dataclasses.fields(plan)}

    def world(data, folder, replay=None):
        seen = World(replay=replay)
        with stopped_clock():
            recording = RecordingPlan.of(seen, **fields)
            made = trainer(folder, plan=recording, entropy=InsecureSeededEntropy(0)).fit(data)
        files = [path for path in folder.rglob("*") if path.is_file() and "kept" not in path.parts]
        of_the_owner = {"metrics.jsonl", "duplicates.json"}
        seen.observed = {
            str(path.relative_to(folder)): path.read_bytes() for path in files if path.name not in of_the_owner
        }
        seen.observed["claim"] = repr(made.claim)
        return seen

    d = world(worlds[0], tmp_path / "d")
    e = world(worlds[1], tmp_path / "e", replay=d)
    assert differences(d, e) == []
    assert max(moved(d, e)) > 0, "the blanked record takes no part"
    listed = json.loads((tmp_path / "d" / "private" / "duplicates.json").read_text())
    assert listed["blank_records"] == [12]
    assert json.loads((tmp_path / "e" / "private" / "duplicates.json").read_text())["blank_records"] == []


def test_a_run_goes_on_with_its_own_public_images_alone(tmp_path):
    run = tmp_path / "run"
    steps = trainer(run).steps(IMAGES)
    next(steps)
    steps.close()
    other = dataclasses.replace(SHOWN, images=255 - SHOWN.images)
    renamed = dataclasses.replace(SHOWN, name="others")
    for public in (other, renamed):
        with pytest.raises(InputError, match=r"holds another run .*facts\.public"):
            trainer(run, public=public).fit(IMAGES)
    trainer(run).fit(IMAGES)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"public": None}, "the method evolution starts from public images: name some"),
        ({"method": PriorAlone()}, "the method prior starts from no public images: leave out --public"),
        ({"public": SHOWN.images}, "public must be an ImageDataset (dpdm.open_dataset), not ndarray"),
        ({"public": dataclasses.replace(SHOWN, name="two\nlines")}, "the public data (public.name)"),
    ],
)
def test_public_images_are_given_where_a_method_starts_from_some(given, says):
    with pytest.raises(InputError) as refused:
        trainer(**given)
    assert says in str(refused.value)


def test_public_images_of_another_shape_are_refused_and_nothing_is_left(tmp_path):
    larger = ImageDataset(images=np.zeros((4, 9, 9, 1), np.uint8), name="larger", public=True)
    with pytest.raises(InputError, match="larger has images of shape"):
        trainer(tmp_path / "run", public=larger).fit(IMAGES)
    assert not (tmp_path / "run").exists()


def test_images_with_a_total_cannot_be_declared_public(tmp_path):
    """Also in another order; what a run spends on others would reveal these, and no total would know."""
    ledger = Ledger(f"sqlite:///{tmp_path}/ledger.db")
    scans = dataclasses.replace(SHOWN, name="scans", public=False)
    ledger.register(Records.of(scans), epsilon=5.0, delta=1e-5, relation="replace_special", unit="image")
    shuffled = dataclasses.replace(SHOWN, images=SHOWN.images[::-1].copy())
    for public in (SHOWN, shuffled):
        with pytest.raises(InputError, match="the images of shown are registered as scans, which has a total"):
            trainer(tmp_path / "run", public=public, ledger=ledger).fit(IMAGES)
        assert not (tmp_path / "run").exists()
    others = dataclasses.replace(SHOWN, images=255 - SHOWN.images)
    trainer(tmp_path / "run", public=others, ledger=ledger).fit(IMAGES)


def _png(path, claim):
    path.mkdir()
    for number, image in enumerate(SHOWN.images[..., 0]):
        Image.fromarray(image).save(path / f"{number}.png", pnginfo=png_with(json.dumps(claim)))
    return path


def _npz(path, claim):
    save_npz(path.with_suffix(".npz"), SHOWN.images, claim=claim)
    return path.with_suffix(".npz")


def _prepared(path, claim):
    source = _png(path.with_name("source"), claim)
    prepare(path, lambda read: open_dataset(source, read=read), Framing(size=8, channels=1))
    return path


@pytest.mark.parametrize("made", [_png, _npz, _prepared])
def test_what_a_release_drew_is_not_public_in_python_either(tmp_path, made):
    claimed = open_dataset(made(tmp_path / "made", {"statement": "(1.0, 1e-05)-DP"}))
    assert claimed.claim == "(1.0, 1e-05)-DP"
    with pytest.raises(InputError, match="made was drawn from a release: its images are not public data"):
        trainer(public=dataclasses.replace(claimed, name="made", public=True))


class _Borrowing(ImageGenerator):
    """Draws what a public file holds, scaled by what was released."""

    def __init__(self, facts, parts):
        super().__init__()
        self.facts, self._parts = facts, parts
        self.register_buffer("level", torch.zeros((), dtype=torch.float64))
        self.pattern = None

    @property
    def parts(self):
        return self._parts

    def supply(self, part, path):
        self.pattern = torch.from_numpy(np.load(path))

    def draw(self, labels, *, random):
        return (self.pattern * self.level).float().expand(len(labels), *self.facts.shape)


@dataclass(frozen=True, kw_only=True)
class Borrowed(Method):
    """One sum; the rest is a public file that the release names and does not hold."""

    kind: ClassVar[str] = "borrowed"
    folder: ClassVar[Path]
    sha256: str

    def releases(self, budget):
        return (FullSum(name="one"),)

    def untrained(self, facts, *, seed=0, sizes=None):
        return _Borrowing(facts, (PublicPart("pattern.npy", self.sha256),))

    def train(self, generator, data, run):
        run.resume()
        generator.supply(*generator.parts, self.folder / "pattern.npy")
        total = torch.tensor([float(len(data))], dtype=torch.float64)
        values, _ = run.once("one", lambda: BoundedSum(total, 1.0))
        generator.level.copy_(values[0].clamp(0, 1))
        yield run.made_sum(generator)
        return generator

    def require_possible(self, read, plan, facts, where):
        pass


def test_a_release_names_the_public_file_that_it_needs_and_is_given_it(tmp_path, monkeypatch):
    monkeypatch.setitem(METHODS, "borrowed", Borrowed)
    pattern, other = tmp_path / "pattern.npy", tmp_path / "other.npy"
    np.save(pattern, np.linspace(-1, 1, 64).reshape(1, 8, 8))
    np.save(other, np.zeros((1, 8, 8)))
    Borrowed.folder, run = tmp_path, tmp_path / "run"
    trainer(run, method=Borrowed(sha256=digest(pattern)), public=None).fit(IMAGES)
    assert verify_release(run).public == (PublicPart("pattern.npy", digest(pattern)),)
    assert "does not protect what was declared public: 'pattern.npy'" in verify_release(run).statement
    loaded = Release.load(run, public={"pattern.npy": pattern})
    assert loaded.sample(3, seed=0)[0].std() > 10
    for given, says in (
        ({}, "needs the public file pattern.npy"),
        ({"pattern.npy": other}, "is not the public file pattern.npy"),
        ({"pattern.npy": tmp_path / "none"}, "is not the public file pattern.npy"),
        ({"pattern.npy": pattern, "more": other}, "needs no public file more: leave it out"),
    ):
        with pytest.raises(InputError, match=says):
            Release.load(run, public=given)


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """Images of a finished run, with what it cost."""
    run = tmp_path_factory.mktemp("released") / "first"
    trainer(run, method=PriorAlone(prior=Prior(centres=1)), public=None).fit(IMAGES)
    return open_drawn(str(run), count=60)


def counting(drawn, epsilon=9.0):
    return METHOD.plan(epsilon=epsilon, dataset_size=12, delta=1e-13, earlier=drawn.earlier)


def test_a_run_over_images_of_a_release_counts_it_and_says_so(released, tmp_path):
    begun_with = {"public": released.images, "earlier": released.earlier, "plan": counting(released)}
    trainer(tmp_path / "run", **begun_with).fit(IMAGES)
    (part,) = verify_release(tmp_path / "run").public
    assert part == PublicPart(released.images.name, released.images.digest(), 60, True)
    claim = json.loads((tmp_path / "run" / "release" / "privacy.json").read_text())
    assert len(claim["events"]) == len(released.earlier) + 2
    assert "declared public" not in claim["statement"]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"earlier": ()}, "was drawn from a release: its images are not public data"),
        ({"public": SHOWN}, "earlier is what images cost that are drawn from a release"),
        ({"plan": None}, "its plan counts other noisy sums than those of that release"),
    ],
)
def test_images_of_a_release_are_begun_with_where_what_they_cost_is_counted(released, changes, says):
    given = {"public": released.images, "earlier": released.earlier, "plan": counting(released)} | changes
    with pytest.raises(InputError, match=says):
        trainer(**given).fit(IMAGES)


def test_a_plan_that_counts_what_no_image_costs_is_refused(released):
    with pytest.raises(InputError, match="its plan counts other noisy sums"):
        trainer(plan=counting(released)).fit(IMAGES)


def drawn_or_not(drawn, sums):
    """Say of the public images whether a release drew them, and take what that cost out of the plan, or leave it."""

    def forge(release):
        settings, claim = release / "config.toml", release / "privacy.json"
        table, stated = tomllib.loads(settings.read_text()), json.loads(claim.read_text())
        (part,) = table["facts"]["public"]
        part.pop("drawn", None)
        table["facts"]["public"] = stated["public"] = [part | ({"drawn": True} if drawn else {})]
        if not sums:
            table["plan"].pop("earlier", None)
        settings.write_bytes(tomli_w.dumps(table).encode())
        stated["sha256"]["config.toml"] = digest(settings)
        claim.write_text(json_text(stated))

    return forge


@pytest.mark.parametrize("forge", [drawn_or_not(drawn=False, sums=True), drawn_or_not(drawn=True, sums=False)])
def test_a_release_that_launders_another_is_refused(released, tmp_path, forge):
    run = tmp_path / "run"
    trainer(run, public=released.images, earlier=released.earlier, plan=counting(released)).fit(IMAGES)
    forge(run / "release")
    with pytest.raises(InputError, match="names images drawn from a release, and counts none, or the other way round"):
        verify_release(run)


def test_images_that_nobody_drew_are_not_called_drawn(evolved, tmp_path):
    shutil.copytree(evolved / "release", tmp_path / "release")
    drawn_or_not(drawn=True, sums=False)(tmp_path / "release")
    with pytest.raises(InputError, match="and counts none"):
        verify_release(tmp_path / "release")


def test_a_run_over_images_of_a_release_goes_on_with_these_alone(released, tmp_path):
    given = {"public": released.images, "earlier": released.earlier, "plan": counting(released)}
    steps = trainer(tmp_path / "run", **given).steps(IMAGES)
    next(steps)
    steps.close()
    other = dataclasses.replace(released.images, images=255 - released.images.images)
    with pytest.raises(InputError, match=r"holds another run .*facts\.public"):
        trainer(tmp_path / "run", **given | {"public": other}).fit(IMAGES)
    trainer(tmp_path / "run", **given).fit(IMAGES)
    assert verify_release(tmp_path / "run").public[0].drawn
