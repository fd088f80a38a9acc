"""A data set is the same to a ledger whatever is done to it: a budget belongs to images, not to a name or a size."""

import shutil
import zipfile

import numpy as np
import pytest
from PIL import Image

import dpdm as package
from dpdm.data import open_dataset
from dpdm.ledger import Ledger
from dpdm.types import InputError

PRIOR_ALONE = ("--method=prior", "--set=privacy.delta=1e-3", "--set=prior.centres=1", "--epsilon=1")


@pytest.fixture
def book(tmp_path, monkeypatch):
    """A ledger of this test's own, which the command line takes for the user's."""
    monkeypatch.setenv("DPDM_LEDGER", str(tmp_path / "ledger.sqlite"))
    return Ledger(str(tmp_path / "ledger.sqlite"))


def copied(photos, dpdm):
    return shutil.copytree(photos, photos.parent / "copy"), "--set=data.size=10"


def linked(photos, dpdm):
    (photos.parent / "elsewhere").symlink_to(photos)
    return photos.parent / "elsewhere", "--set=data.size=10"


def padded(photos, dpdm):
    return shutil.copytree(photos, photos.parent / "copy"), "--set=data.size=8", "--set=data.fit=pad"


def grey(photos, dpdm):
    return shutil.copytree(photos, photos.parent / "copy"), "--set=data.size=8", "--set=data.channels=1"


def shuffled(photos, dpdm):
    """All in one class, under other names."""
    (photos.parent / "copy" / "all").mkdir(parents=True)
    for number, file in enumerate(sorted(photos.rglob("*.png"), reverse=True)):
        shutil.copy(file, photos.parent / "copy" / "all" / f"{number:03}.png")
    return photos.parent / "copy", "--set=data.size=10"


def encoded_anew(photos, dpdm):
    """Other files of the same pixels."""
    for file in sorted(photos.rglob("*.png")):
        target = photos.parent / "copy" / file.relative_to(photos).with_suffix(".bmp")
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.open(file).save(target)
    return photos.parent / "copy", "--set=data.size=10"


def zipped(photos, dpdm):
    with zipfile.ZipFile(photos.parent / "other.zip", "w") as archive:
        for entry in sorted(photos.rglob("*")):
            archive.write(entry, entry.relative_to(photos))
    return photos.parent / "other.zip", "--set=data.size=10"


def table(photos, dpdm):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    files = sorted(photos.rglob("*.png"))
    parquet.write_table(pyarrow.table({"image": [f.read_bytes() for f in files]}), photos.parent / "other.parquet")
    return photos.parent / "other.parquet", "--set=data.size=10"


def arrays(photos, dpdm):
    np.savez(photos.parent / "other.npz", images=open_dataset(photos).images)
    return photos.parent / "other.npz", "--set=data.size=10"


def arrays_as_trained_on(photos, dpdm):
    np.savez(photos.parent / "other.npz", images=open_dataset(photos, size=8).images)
    return photos.parent / "other.npz", "--set=data.size=10"


def prepared(photos, dpdm, output="ready", *more):
    code, _, err = dpdm("prepare", photos, "--set=data.size=10", "--set=data.channels=1", "-o", output, *more)
    assert code == 0, err
    return (photos.parent / output,)


def prepared_twice(photos, dpdm):
    once = prepared(photos, dpdm)[0]
    code, _, err = dpdm("prepare", once, "-o", "twice")
    assert code == 0, err
    return (photos.parent / "twice",)


def prepared_under_another_name(photos, dpdm):
    return prepared(photos, dpdm, "ready", "--set=data.name=others")


def named_anew_after_preparing(photos, dpdm):
    return *prepared(photos, dpdm), "--set=data.name=others"


def prepared_from_arrays(photos, dpdm):
    return prepared(arrays(photos, dpdm)[0], dpdm)


def prepared_from_a_zip(photos, dpdm):
    return prepared(zipped(photos, dpdm)[0], dpdm)


WAYS = [
    copied,
    linked,
    padded,
    grey,
    shuffled,
    encoded_anew,
    zipped,
    table,
    arrays,
    arrays_as_trained_on,
    prepared,
    prepared_twice,
    prepared_under_another_name,
    named_anew_after_preparing,
    prepared_from_arrays,
    prepared_from_a_zip,
]


@pytest.mark.parametrize("other", WAYS, ids=lambda way: way.__name__)
def test_a_budget_that_is_spent_is_spent_in_every_form_of_the_images(other, dpdm, photos, book, tmp_path):
    """The kind: identity by a name that anybody, the program too, can change."""
    code, _, err = dpdm("train", photos, "--set=data.size=8", "--run=first", *PRIOR_ALONE)
    assert code == 0, err
    code, _, err = dpdm("train", *other(photos, dpdm), "--run=second", *PRIOR_ALONE)
    assert (code, sum("dpdm:" in line for line in err.splitlines())) == (2, 1)
    assert "photos has a total of" in err or "registered as photos: go on under that name" in err
    assert list(book.accounts()) == ["photos"]
    assert len(book.account("photos").reservations) == 1
    assert not (tmp_path / "second").exists()


@pytest.mark.parametrize("first", [prepared, zipped, arrays, prepared_from_arrays], ids=lambda way: way.__name__)
def test_and_so_it_is_the_other_way_round(first, dpdm, photos, book):
    """What was trained on first was not the folder; then comes the folder, at another size."""
    code, _, err = dpdm("train", *first(photos, dpdm), "--set=data.name=first", "--run=first", *PRIOR_ALONE)
    assert code == 0, err
    code, _, err = dpdm("train", photos, "--set=data.size=9", "--run=second", *PRIOR_ALONE)
    assert code == 2
    assert "the records of photos are registered as first" in err
    assert list(book.accounts()) == ["first"]


def test_arrays_are_known_again_in_python(photos, book):
    images = open_dataset(photos, size=8).images
    first = package.Synthesizer(epsilon=1, delta=1e-3, steps=0)
    first.fit(images)
    with pytest.raises(InputError, match="100 % is spent"):
        first.fit(images[::-1].copy())
    with pytest.raises(InputError, match="registered as images"):
        package.Synthesizer(epsilon=1, delta=1e-3, steps=0, name="others").fit(images)


def test_a_prepared_folder_has_the_name_of_its_source_and_may_be_named_anew(dpdm, photos):
    (ready,) = prepared(photos, dpdm)
    assert open_dataset(ready).name == "photos"
    assert open_dataset(ready.rename(ready.parent / "moved")).name == "photos"
    assert package.load_config(str(ready.parent / "moved"), overrides=["data.name=ours"]).data.open().name == "ours"


def test_a_built_in_data_set_stays_public_when_it_is_prepared_and_a_private_one_never_becomes_so(dpdm, book, tmp_path):
    code, _, err = dpdm("prepare", "digits", "-o", "ready")
    assert code == 0, err
    opened = open_dataset(tmp_path / "ready")
    assert (opened.name, opened.public) == ("digits", True)
    code, _, err = dpdm("prepare", "digits", "--set=data.name=ours", "-o", "ours")
    assert code == 0, err
    opened = open_dataset(tmp_path / "ours")
    assert (opened.name, opened.public) == ("ours", False)


@pytest.mark.parametrize("name", ["digits", "mnist", "fashion-mnist:test", "Digits"])
def test_private_images_do_not_go_by_the_name_of_public_ones(name, dpdm, photos, book):
    lines = (
        ("train", photos, "--set=data.size=8", f"--set=data.name={name}", "--run=run", *PRIOR_ALONE),
        ("ledger", "register", photos, "--set=data.size=8", f"--set=data.name={name}", "--epsilon=1"),
    )
    for line in lines:
        code, _, err = dpdm(*line)
        assert (code, err.count("\n")) == (2, 1)
        assert f"{name} is the name of a public data set, and these are private" in err
        assert "data.name" in err
    assert book.accounts() == {}


def others_of_the_same_name(photos):
    """Another hospital's folder `photos`."""
    rng = np.random.default_rng(9)
    (photos.parent / "there" / "photos").mkdir(parents=True)
    for number in range(20):
        image = Image.fromarray(rng.integers(0, 256, (12, 10, 3), dtype=np.uint8))
        image.save(photos.parent / "there" / "photos" / f"{number}.png")
    return photos.parent / "there" / "photos"


def test_other_peoples_images_of_the_same_name_are_told_of_the_name_first(dpdm, photos, book):
    dpdm("train", photos, "--set=data.size=8", "--run=first", *PRIOR_ALONE)
    there = others_of_the_same_name(photos)
    lines = (
        ("train", there, "--set=data.size=8", "--run=second", *PRIOR_ALONE),
        ("train", there, "--set=data.size=8", "--run=second", "--dataset-size=20", *PRIOR_ALONE),
        ("ledger", "register", there, "--set=data.size=8", "--epsilon=1"),
    )
    for line in lines:
        code, _, err = dpdm(*line)
        assert (code, err.count("\n")) == (2, 1), err
        assert err.index("--set data.name=") < min(
            err.find(word) for word in ("has a total", "registered for claims", "registered already") if word in err
        )
    assert dpdm("ledger", "total", "photos", "--epsilon", 9)[0] == 0
    code, _, err = dpdm("train", there, "--set=data.size=8", "--run=second", *PRIOR_ALONE)
    assert code == 0, err
    assert "photos has other records than before. If these are other people's, stop and name yours anew" in err
    code, _, err = dpdm("train", there, "--set=data.size=8", "--set=data.name=there", "--run=third", *PRIOR_ALONE)
    assert code == 2, "these records have an account by now"
    assert "registered as photos" in err


def test_what_a_ledger_exports_of_two_data_sets_and_their_union_fits_no_equation(dpdm, book, tmp_path):
    """The kind: digests that are sums, so that sums of digests are digests of unions."""
    rng = np.random.default_rng(0)
    one, two = (rng.integers(0, 256, (number, 8, 8, 1), dtype=np.uint8) for number in (5, 7))
    more = rng.integers(0, 256, (1, 8, 8, 1), dtype=np.uint8)
    sets = {
        "one": one,
        "two": two,
        "both": np.concatenate([one, two]),
        "one and more": np.concatenate([one, more]),
        "two and more": np.concatenate([two, more]),
    }
    found = {}
    for name, images in sets.items():
        np.savez(tmp_path / f"{name}.npz", images=images, groups=np.arange(len(images)) // 2)
        line = ("--set=data.group=groups", "--set=data.size=10", f"--set=data.name={name}", "--epsilon=1")
        code, _, err = dpdm("ledger", "register", tmp_path / f"{name}.npz", *line)
        assert code == 0, err
    for entry in book.storage.entries():
        if entry.content["kind"] == "records":
            found[entry.content["dataset"]] = [(int(r, 16), int(g, 16)) for r, g in entry.content["records"].items()]
    assert found.keys() == sets.keys()
    for place in np.ndindex(2, 2):
        digests = {name: found[name][place[0]][place[1]] for name in found}
        assert len(set(digests.values())) == 5
        assert (digests["one"] + digests["two"] - digests["both"]) % 2**256 != 0
        differences = digests["one and more"] - digests["one"], digests["two and more"] - digests["two"]
        assert (differences[0] - differences[1]) % 2**256 != 0


def test_a_prepared_folder_that_was_stopped_and_goes_on_has_the_sources_of_all(photos, tmp_path, monkeypatch):
    from dpdm.data import Framing, prepare
    from dpdm.data import prepared as module

    whole = open_dataset(photos, size=8)
    read, count = module.read_image, iter(range(40))
    monkeypatch.setattr(module, "_SECONDS_BETWEEN_SAVES", -1.0)

    def until_killed(*arguments, **more):
        if next(count) == 11:
            raise KeyboardInterrupt
        return read(*arguments, **more)

    def source(read):
        return open_dataset(photos, read=read)

    with monkeypatch.context() as crash:
        crash.setattr(module, "read_image", until_killed)
        with pytest.raises(KeyboardInterrupt):
            prepare(tmp_path / "ready", source, Framing(size=12))
    prepare(tmp_path / "ready", source, Framing(size=12))
    assert np.array_equal(open_dataset(tmp_path / "ready").sources, whole.sources)
    assert len({bytes(row) for row in whole.sources.reshape(60, 32)}) == 60
