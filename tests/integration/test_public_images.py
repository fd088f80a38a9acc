"""Public images from the command line: named, opened, claimed, checked, audited."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from dpdm.audit import audit_run
from dpdm.audit.opened import open_run
from dpdm.data import public, read_claim, shapes
from dpdm.ledger import Ledger
from dpdm.methods.registry import METHODS
from dpdm.runs import tuning
from dpdm.types import InputError

EVOLVED = ("--method=evolution", "--epsilon=4", "--set=data.size=8", "--set=privacy.delta=1e-3", "--set=population=5")


@pytest.fixture
def shown(tmp_path):
    """A folder of 64 small colour pictures without classes."""
    (tmp_path / "shown").mkdir()
    rng = np.random.default_rng(1)
    for number in range(64):
        picture = Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8))
        picture.save(tmp_path / "shown" / f"{number}.png")
    return tmp_path / "shown"


@pytest.fixture
def evolved(dpdm, photos, shown, tmp_path):
    code, out, err = dpdm("train", photos, *EVOLVED, "--public", shown, "--run", "run")
    assert code == 0, err
    assert "it does not protect what was declared public: 'shown' (64 images, SHA-256" in out
    return tmp_path / "run"


@pytest.mark.parametrize(
    "named", ["photos", "./photos/", "photos:train", "fonts+photos", "link", "{}", "photos/ant", "."]
)
@pytest.mark.parametrize("command", ["plan", "train"])
def test_private_images_are_not_named_as_public_ones_too(named, command, dpdm, photos, tmp_path):
    (tmp_path / "link").symlink_to(photos)
    code, _, err = dpdm(command, "photos", *EVOLVED, "--public", named.format(photos))
    assert (code, err.count("\n")) == (2, 1)
    assert "names the images that are to be protected" in err


def test_runs_of_a_search_are_not_compared_on_the_images_that_are_to_be_protected(dpdm, photos, tmp_path):
    searched = ("--method=prior", "--epsilon=4", "--set=data.size=8", "--runs=2", "--try", "prior.centres=1,2")
    for named in ("photos", photos / "ant"):
        code, _, err = dpdm("tune", "photos", *searched, "--reference", named, "--run", "run")
        assert (code, err.count("\n")) == (2, 1)
        assert "names the images that are to be protected, or some of them" in err
    assert not (tmp_path / "run").exists()


def test_a_private_score_sees_no_public_image(dpdm, photos, shown, tmp_path, monkeypatch):

    seen = []
    monkeypatch.setattr(tuning.Search, "draw_num_runs", lambda self, source: 1)
    monkeypatch.setattr(
        tuning.Tuner, "_score", lambda self, release, test, *rest: seen.append(test.blank.copy()) or 1.0
    )
    shutil.copy(shown / "3.png", photos / "ant" / "0.png")
    searched = ("--runs=2", "--try=seed=1,2", "--score-noise=20", "--run=best")
    code, _, err = dpdm("tune", photos, *EVOLVED, "--public", shown, *searched)
    assert code == 0, err
    assert [np.flatnonzero(blank).tolist() for blank in seen] == [[0]]


def test_an_image_that_is_public_too_is_no_copy(dpdm, photos, shown, tmp_path):
    for picture in shown.iterdir():
        shutil.copy(picture, photos / "ant" / f"shown {picture.name}")
    assert dpdm("train", photos, *EVOLVED, "--public", shown, "--run", "run", "--set=augment=0.0")[0] == 0
    found = audit_run(tmp_path / "run")
    assert found.nearness.nearest.min() > 0, "each drawn image is a public one, and so is in the folder"
    opened = open_run("run", data=None, public=None, held_out=None)
    assert len(opened.private) == len(opened.data) - 64, "shares are of private images alone"
    for picture in photos.rglob("shown *.png"):
        picture.unlink()
    for number, picture in enumerate(photos.rglob("*.png")):
        shutil.copy(shown / f"{number}.png", picture)
    assert dpdm("train", photos, *EVOLVED, "--public", shown, "--run", "public")[0] == 0
    with pytest.raises(InputError, match="all but 0 images are public ones of this run"):
        audit_run(tmp_path / "public")


def test_a_run_names_its_public_images_wherever_it_states_its_claim(dpdm, evolved, tmp_path):
    claim = json.loads((evolved / "release" / "privacy.json").read_text())
    (part,) = claim["public"]
    code, out, err = dpdm("verify", "run")
    assert code == 0, err
    assert (
        f'public   "shown", 64 images, SHA-256 {part["sha256"]}: declared so, and the claim does not protect it' in out
    )
    assert json.loads(dpdm("verify", "run", "--json")[1])["public"] == [part]
    code, out, err = dpdm("sample", "run", "-n", 12, "-o", "made.npz")
    assert code == 0, err
    with np.load(tmp_path / "made.npz") as made:
        assert json.loads(str(made["claim"]))["public"] == [part]
    assert "does not protect what was declared public: 'shown'" in read_claim(tmp_path / "made.npz")
    assert "does not protect what was declared public: 'shown'" in out
    code, _, err = dpdm("report", "run")
    assert code == 0, err
    assert part["sha256"] in (evolved / "report.html").read_text()


def test_every_image_that_it_draws_is_a_public_one_if_none_is_moved(dpdm, photos, shown, tmp_path):
    from dpdm.data import open_dataset

    assert dpdm("train", photos, *EVOLVED, "--public", shown, "--run", "run", "--set=augment=0.0")[0] == 0
    assert dpdm("sample", "run", "-n", 30, "-o", "made.npz")[0] == 0
    public = {image.tobytes() for image in open_dataset(shown, size=8).images}
    assert {image.tobytes() for image in np.load(tmp_path / "made.npz")["images"]} <= public


@pytest.mark.parametrize("fit", ["crop", "pad", "resize"])
def test_public_images_are_framed_as_private_ones_are(fit, dpdm, photos, shown, tmp_path):
    from dpdm.data import open_dataset
    from dpdm.runs.start import open_start

    for picture in shown.iterdir():
        Image.open(picture).resize((9, 14)).save(picture)
    framed = f"--set=data.fit={fit}"
    code, _, err = dpdm("train", photos, *EVOLVED, framed, "--public", shown, "--run", "run", "--set=augment=0.0")
    assert code == 0, err
    assert dpdm("sample", "run", "-n", 30, "-o", "made.npz")[0] == 0
    public = open_dataset(shown, size=8, fit=fit)
    assert {image.tobytes() for image in np.load(tmp_path / "made.npz")["images"]} <= {
        image.tobytes() for image in public.images
    }
    code, _, err = dpdm("audit", "run")
    assert code == 0, err
    declared = ("--set=data.size=8", "--set=data.channels=3", "--set=data.num_classes=0", "--set=network.width=16")
    code, _, err = dpdm("pretrain", shown, "--like", "photos", *declared, framed, "--minutes", 0.01, "-o", "start")
    assert code == 0, err
    assert open_start(tmp_path / "start").part.sha256 == public.digest()


def test_the_same_command_goes_on_and_another_does_not(dpdm, evolved, photos, shown):
    code, _, err = dpdm("train", photos, *EVOLVED, "--public", shown, "--run", "run")
    assert code == 0, err
    Image.new("RGB", (9, 9)).save(shown / "more.png")
    code, _, err = dpdm("train", photos, *EVOLVED, "--public", shown, "--run", "run")
    assert (code, err.count("\n")) == (2, 1)
    assert "run holds another run" in err
    assert "facts.public" in err


def test_a_plan_of_it_needs_no_public_images(dpdm, photos):
    code, out, err = dpdm("plan", photos, *EVOLVED)
    assert code == 0, err
    assert "sums        2; noise" in out
    assert "time        seconds to minutes: no network is trained" in out
    assert "GiB, with 30,000 public images" in out
    assert "network" not in out.replace("no network is trained", "")
    code, out, err = dpdm("plan", photos, "--method", "teacher", "--epsilon", "3")
    assert code == 0, err
    assert "here, measured on random images" in out


def test_a_plan_takes_public_images_as_train_does_and_draws_none(dpdm, photos, shown, monkeypatch):
    monkeypatch.setattr(public, "render_fonts", lambda *_: pytest.fail("fonts were drawn"))
    code, out, err = dpdm("plan", photos, *EVOLVED, "--public", f"fonts+{shown}")
    assert code == 0, err
    assert f"public      fonts+{shown}: images that no ε protects" in out
    assert f"GiB, and what the images of {shown} take" in out
    code, _, err = dpdm("plan", photos, *EVOLVED, "--public", "fonst")
    assert (code, err.count("\n")) == (2, 1)
    assert "did you mean fonts?" in err
    code, _, err = dpdm("plan", photos, "--epsilon=4", "--public", "fonts")
    assert code == 2
    assert "the method diffusion starts from no public images: leave out --public" in err


def test_a_population_that_no_memory_holds_is_refused_before_anything_is_spent(
    dpdm, photos, shown, monkeypatch, tmp_path
):
    monkeypatch.setattr("dpdm.runs.rehearsal.memory_there", lambda device: 2**16)
    code, _, err = dpdm("train", photos, *EVOLVED, "--public", shown, "--run", "run")
    assert (code, err.count("\n")) == (2, 1)
    assert "the method evolution needs about" in err
    assert "and there are 0.1 MiB: take a smaller population, fewer features, or fewer or smaller public images" in err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (EVOLVED, "the method evolution starts from public images: name some, by --public PATH"),
        (("--method=prior", "--epsilon=4", "--public", "shown"), "the method prior starts from no public images"),
        ((*EVOLVED, "--public", "nowhere"), "nowhere"),
        ((*EVOLVED, "--public", "2024"), "2024 is neither a path that exists"),
        ((*EVOLVED, "--public", "shown/0.png"), "shown/0.png"),
        ((*EVOLVED, "--public", "shown", "--set=public.name="), "public.name"),
        ((*EVOLVED, "--public", "shown", "--minutes=1"), "takes no steps that could be timed: leave out --minutes"),
    ],
)
def test_what_is_wrong_with_public_images_is_one_line_before_anything_is_spent(
    dpdm, photos, shown, tmp_path, line, says
):
    code, out, err = dpdm("train", photos, *line, "--run", "run")
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert says in err
    assert not (tmp_path / "run").exists()


def test_images_with_a_total_are_no_public_images(dpdm, photos, shown, tmp_path, monkeypatch):
    monkeypatch.setenv("DPDM_LEDGER", str(tmp_path / "ledger.sqlite"))
    assert dpdm("ledger", "register", shown, "--epsilon", 5)[0] == 0
    code, _, err = dpdm("train", photos, *EVOLVED, "--public", shown, "--set=public.name=others", "--run", "run")
    assert (code, err.count("\n")) == (2, 1)
    assert "the images of others are registered as shown, which has a total: they are private" in err
    assert not (tmp_path / "run").exists()
    assert Ledger(str(tmp_path / "ledger.sqlite")).account("shown").untouched


def test_images_that_are_to_be_protected_are_not_declared_public_where_they_lie(dpdm, photos, tmp_path):
    for declared in (photos, f"{photos}+shapes"):
        code, out, err = dpdm("train", photos, *EVOLVED, "--public", declared, "--run", "run")
        assert (code, out, err.count("\n")) == (2, "", 1), err
        assert "photos names the images that are to be protected" in err
        assert not (tmp_path / "run").exists()


def test_a_mixture_does_not_hide_images_with_a_total(dpdm, photos, shown, tmp_path, monkeypatch):
    monkeypatch.setenv("DPDM_LEDGER", str(tmp_path / "ledger.sqlite"))
    assert dpdm("ledger", "register", shown, "--epsilon", 5)[0] == 0
    monkeypatch.setattr("dpdm.data.public.COUNT", 20)
    code, _, err = dpdm("train", photos, *EVOLVED, "--public", f"{shown}+shapes", "--run", "run")
    assert (code, err.count("\n")) == (2, 1)
    assert "the images of shown are registered as shown, which has a total" in err


@pytest.mark.parametrize("made", ["made.npz", "made", "ready"])
def test_what_was_drawn_from_a_release_is_refused_as_public(dpdm, evolved, photos, tmp_path, made):
    """Whatever carries the claim: one file, PNG files, and what was prepared from either."""
    assert dpdm("sample", "run", "-n", 6, "-o", "made" if made == "ready" else made)[0] == 0
    if made == "ready":
        assert dpdm("prepare", "made", "-o", "ready")[0] == 0
    for line in (
        ("train", photos, *EVOLVED, "--public", made, "--run", "other"),
        ("train", photos, *EVOLVED, "--public", f"shapes+{made}", "--run", "other"),
        ("tune", photos, *EVOLVED, "--public", "shapes", "--try=seed=1,2", "--run", "best", "--reference", made),
    ):
        code, out, err = dpdm(*line)
        assert (code, out, err.count("\n")) == (2, "", 1), err
        assert "was drawn from a private release ((4" in err or "was drawn from a private release ((3.99" in err
        assert "its images are not public data" in err


@pytest.mark.proof
def test_a_run_that_started_from_public_images_is_audited(dpdm, evolved, shown):
    code, out, err = dpdm("audit", "run")
    assert code == 0, err
    assert "all 2 sums: all that the run claims" in out
    assert "No attack exceeded what the run claims." in out
    (shown / "0.png").unlink()
    code, _, err = dpdm("audit", "run")
    assert (code, err.count("\n")) == (2, 1)
    assert "shown is not shown, which run started from: its digest is another" in err


@pytest.mark.proof
def test_a_search_starts_from_public_images_too(dpdm, photos, shown, tmp_path):
    line = ("tune", photos, *EVOLVED, "--try=seed=1,2", "--runs=1.5", "--score-noise=20", "--run", "best")
    code, _, err = dpdm(*line)
    assert (code, err.count("\n")) == (2, 1)
    assert "starts from public images" in err
    code, out, err = dpdm(*line, "--public", shown)
    assert code == 0, err
    assert "it does not protect what was declared public: 'shown' (" in out
    assert dpdm("verify", "best")[0] == 0


def test_a_search_goes_on_with_the_images_that_it_began_with_alone(dpdm, photos, shown, tmp_path, monkeypatch):
    """Also between two of its runs, when none has begun that would know them."""
    line = ("tune", photos, *EVOLVED, "--try=seed=1,2", "--score-noise=20", "--run", "best", "--public", shown)
    monkeypatch.setattr(tuning.Search, "draw_num_runs", lambda self, random_bytes: 2)
    monkeypatch.setattr(tuning, "NUM_IMAGES", 60)
    one_run = tuning.Tuner._one_run

    def stopped_after_one(self, number, *arguments):
        if number == 2:
            raise KeyboardInterrupt
        one_run(self, number, *arguments)

    with monkeypatch.context() as crash:
        crash.setattr(tuning.Tuner, "_one_run", stopped_after_one)
        assert dpdm(*line)[0] != 0
    Image.new("RGB", (9, 9)).save(shown / "more.png")
    code, _, err = dpdm(*line)
    assert code == 2
    assert "best holds another search" in err.splitlines()[-1]
    (shown / "more.png").unlink()
    code, _, err = dpdm(*line)
    assert code == 0, err


def test_public_images_that_change_between_two_runs_of_a_search_are_refused(dpdm, photos, shown, tmp_path, monkeypatch):
    """Its claim names those of one run. What was there may be put back, and the search goes on."""
    line = ("tune", photos, *EVOLVED, "--try=seed=1,2", "--score-noise=20", "--run", "best", "--public", shown)
    monkeypatch.setattr(tuning.Search, "draw_num_runs", lambda self, random_bytes: 2)
    monkeypatch.setattr(tuning, "NUM_IMAGES", 60)
    one_run, made = tuning.Tuner._one_run, []

    def with_more_images(self, number, *arguments):
        if number == 2:
            Image.new("RGB", (9, 9)).save(shown / "more.png")
        one_run(self, number, *arguments)
        made.append(number)

    with monkeypatch.context() as changed:
        changed.setattr(tuning.Tuner, "_one_run", with_more_images)
        code, _, err = dpdm(*line)
    assert (code, made) == (2, [1])
    assert "the runs of a search would be made with different public images" in err.splitlines()[-1]
    assert not (tmp_path / "best" / "release").exists()
    (shown / "more.png").unlink()
    code, _, err = dpdm(*line)
    assert code == 0, err


def test_candidates_that_see_by_two_networks_of_one_name_are_refused(dpdm, photos, shown, tmp_path):
    class Seen(torch.nn.Module):
        def __init__(self, factor: float) -> None:
            super().__init__()
            self.factor = factor

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.adaptive_avg_pool2d(x.float(), 2).flatten(1) ** self.factor

    for folder, factor in (("a", 1.0), ("b", 2.0)):
        (tmp_path / folder).mkdir()
        torch.jit.script(Seen(factor)).save(tmp_path / folder / "features.pt")
    line = ("tune", photos, *EVOLVED, "--score-noise=20", "--run", "best", "--public", shown)
    code, _, err = dpdm(*line, "--try=embedding.features=a/features.pt,b/features.pt")
    assert code == 2
    assert "the runs of a search would be made with different public images, networks" in err.splitlines()[-1]
    assert not (tmp_path / "best").exists()


@pytest.mark.parametrize(("left", "goes_on"), [(".search.json.partial", True), ("runs", False)])
def test_a_search_that_was_killed_before_it_was_drawn_goes_on(
    dpdm, photos, shown, tmp_path, monkeypatch, left, goes_on
):
    monkeypatch.setattr(tuning.Search, "draw_num_runs", lambda self, random_bytes: 1)
    monkeypatch.setattr(tuning, "NUM_IMAGES", 60)
    (tmp_path / "best" / "private").mkdir(parents=True)
    (tmp_path / "best" / "private" / left).write_text("half")
    line = ("tune", photos, *EVOLVED, "--try=seed=1,2", "--score-noise=20", "--run", "best", "--public", shown)
    code, _, err = dpdm(*line)
    assert (code == 0) == goes_on, err
    assert goes_on or "holds no search that can go on" in err.splitlines()[-1]


def test_a_finished_run_shows_no_progress_again(dpdm, evolved, photos, shown):
    code, _, err = dpdm("train", photos, *EVOLVED, "--public", shown, "--run", "run")
    assert code == 0, err
    assert "training" not in err


def test_settings_that_differ_are_said_in_words(dpdm, evolved, photos, shown):
    Image.new("RGB", (9, 9)).save(shown / "more.png")
    _, _, err = dpdm("train", photos, *EVOLVED, "--public", shown, "--run", "run")
    assert "facts.public is shown (SHA-256 " in err
    assert not set("[]{}'") & set(err)


def test_a_misspelt_method_is_told_with_the_nearest_before_the_heavy_imports(tmp_path):
    line = "import sys; sys.argv = ['dpdm', 'train', 'digits', '--method', 'evolutoin']; import dpdm.cli as cli\n"
    line += "try: cli.main()\nfinally: print('torch' in sys.modules, 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", line], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    known = ", ".join(sorted(METHODS))
    assert done.stderr == f"dpdm: --method 'evolutoin' is none of {known}: did you mean evolution?\n"
    assert done.stdout == "False False\n"


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("--ledger", "broken.db"), "broken.db"),
        (("--set=population=900000",), "population × classes must be at most"),
        (("--dataset-size=40", "--set=privacy.delta=0.5"), "delta = 0.5 is not below"),
    ],
)
def test_what_is_wrong_is_told_before_public_images_are_drawn(dpdm, photos, monkeypatch, tmp_path, more, says):
    (tmp_path / "broken.db").write_text("no ledger")
    monkeypatch.setattr(public, "render_fonts", lambda *_: pytest.fail("fonts were drawn"))
    code, _, err = dpdm("train", photos, *EVOLVED, "--public", "fonts", "--run", "run", *more)
    assert code in (1, 2)
    assert says in err
    assert err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_drawing_shows_how_far_it_is_and_ends_in_a_line(dpdm, photos, monkeypatch, tmp_path):
    monkeypatch.setattr(public, "COUNT", 300)
    code, _, err = dpdm("train", photos, *EVOLVED, "--public", "shapes", "--run", "drawn")
    assert code == 0, err
    assert "drawing shapes: 300 of 300" in err
    drawn = []

    def draw(index, *_):
        drawn.append(index)
        if index == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(shapes, "draw_images", lambda *_, **__: [draw(index) for index in range(9)])
    code, _, err = dpdm("train", photos, *EVOLVED, "--public", "shapes", "--run", "run")
    assert code == 130
    assert err == "stopped while public images were drawn: nothing was begun\n"
    assert drawn == [0, 1, 2, 3, 4, 5]
    assert not (tmp_path / "run").exists()


def test_labels_that_a_mixture_loses_are_told(dpdm, photos, shown, tmp_path):
    for number in range(2):
        (tmp_path / "classed" / f"class {number}").mkdir(parents=True)
        for image in sorted(shown.glob("*.png"))[number::2]:
            shutil.copy(image, tmp_path / "classed" / f"class {number}")
    code, _, err = dpdm("train", photos, *EVOLVED, "--public", f"{shown}+{tmp_path / 'classed'}", "--run", "run")
    assert code == 0, err
    assert "shown+classed: the labels of classed are left out, since not all sources have the same class names" in err


PRIOR = ("--method=prior", "--epsilon=4", "--set=data.size=8", "--set=privacy.delta=1e-3", "--set=prior.centres=1")
SECOND = (*EVOLVED[:1], "--epsilon=6", *EVOLVED[2:], "--ledger=none", "--run", "second")


@pytest.fixture
def drawn_from_a_run(dpdm, photos, monkeypatch):
    monkeypatch.setattr("dpdm.runs.drawn.COUNT", 90)
    code, _, err = dpdm("train", photos, *PRIOR, "--run", "first")
    assert code == 0, err


def test_candidates_of_a_finished_run_count_its_noisy_sums_again(dpdm, photos, drawn_from_a_run, tmp_path):
    code, out, err = dpdm("plan", photos, *SECOND[:-3], "--public", "first")
    assert code == 0, err
    assert "public      first: images of a release, which the claim counts" in out
    code, out, err = dpdm("train", photos, *SECOND, "--public", "first")
    assert code == 0, err
    first, second = (
        json.loads((tmp_path / run / "release" / "privacy.json").read_text()) for run in ("first", "second")
    )
    made = len(first["events"])
    assert [event["noise_multiplier"] for event in second["events"][:made]] == [
        event["noise_multiplier"] for event in first["events"]
    ]
    assert len(second["events"]) > made
    assert 5.9 < second["epsilon"] <= 6.0, "all of it, and no more"
    assert f"earlier releases of 'photos' (noisy sums: {made})" in second["statement"]
    assert "a release, which it counts: 'drawn from photos' (90 images, SHA-256 " in out
    assert "declared public" not in second["statement"], "nobody declared these images public"
    code, out, err = dpdm("verify", "second")
    assert code == 0, err
    assert 'drawn    "drawn from photos", 90 images, SHA-256' in out
    assert dpdm("report", "second")[0] == 0
    code, _, err = dpdm("train", photos, *SECOND, "--public", "first")
    assert code == 0, "the same command goes on"
    assert dpdm("audit", "second")[0] == 0


def test_a_budget_that_the_release_has_used_up_is_refused(dpdm, photos, drawn_from_a_run, tmp_path):
    code, _, err = dpdm("train", photos, *SECOND, "--epsilon=3", "--public", "first")
    assert code == 2
    assert "cannot be reached by any amount of noise" in err.splitlines()[-1]
    assert not (tmp_path / "second").exists()


@pytest.mark.parametrize(
    ("source", "says"),
    [("first+shapes", "belongs to a private run: name the run itself"), ("first/watch", "belongs to a private run")],
)
def test_a_release_is_no_part_of_a_mixture(dpdm, photos, drawn_from_a_run, tmp_path, source, says):
    code, _, err = dpdm("train", photos, *SECOND, "--public", source)
    assert (code, err.count("\n")) == (2, 1)
    assert says in err
    assert not (tmp_path / "second").exists()


def test_a_release_that_does_not_agree_with_its_claim_draws_nothing(dpdm, photos, drawn_from_a_run, tmp_path):
    (tmp_path / "first" / "release" / "model.safetensors").write_bytes(b"12")
    code, _, err = dpdm("train", photos, *SECOND, "--public", "first")
    assert (code, err.splitlines()[-1].count("model.safetensors")) == (2, 1)
    assert not (tmp_path / "second").exists()


def test_a_prior_of_the_same_plan_needs_no_public_images(dpdm, photos, shown):
    line = ("train", photos, *EVOLVED, "--set=prior.centres=1", "--run", "run")
    code, _, err = dpdm(*line, "--public", shown)
    assert (code, err.count("\n")) == (2, 1)
    assert "starts from no public images with these settings: leave out --public" in err
    code, out, err = dpdm(*line)
    assert code == 0, err
    assert "public" not in out.splitlines()[0]
    assert dpdm("verify", "run")[0] == 0
    code, out, err = dpdm("plan", photos, *EVOLVED, "--set=prior.centres=1")
    assert code == 0, err
    assert "sums        6; noise" in out
