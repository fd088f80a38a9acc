"""A release is verified as it was written, and refused, in one line, once anything about it was changed."""

import dataclasses
import json
import shutil

import pytest
import tomli_w
from small_run import SMALL

from dpdm.files import json_text
from dpdm.privacy.accounting import GaussianRelease, PoissonGaussianSteps, epsilon, true_positive_rates
from dpdm.training import Release, verify_release
from dpdm.types import InputError


def test_a_release_is_verified_and_its_claim_put_in_plain_words(dpdm, trained):
    code, out, err = dpdm("verify", trained)
    assert code == 0, err
    claim = json.loads((trained / "release" / "privacy.json").read_text())
    assert claim["statement"] in out
    assert "One unit of protection is one image with its label" in out
    assert "that there were 30 images is public" in out
    code, out, _ = dpdm("verify", trained / "release", "--json")
    found = json.loads(out)
    assert found["epsilon"] == pytest.approx(claim["epsilon"], abs=1e-4)
    assert found["epsilon"] <= found["epsilon_rdp"]
    one, tenth = found["true_positive_rates"]["0.01"], found["true_positive_rates"]["0.001"]
    assert 0.001 < tenth < one < 2.7183 * 0.01 + 1e-3  # (1, 1e-3)-DP allows no more
    assert f"{one:.1%}"[:1] in found["bounds"]


def edit(name, change):
    def tamper(release):
        path = release / name
        path.write_text(change(path.read_text()))

    return tamper


def edit_claim(**values):
    return edit("privacy.json", lambda text: json_text(json.loads(text) | values))


def edit_event(**values):
    def change(text):
        claim = json.loads(text)
        claim["events"][-1] |= values
        return json_text(claim)

    return edit("privacy.json", change)


def swap_weights(release):
    weights = bytearray((release / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (release / "model.safetensors").write_bytes(weights)


TAMPERED = {
    "smaller epsilon": (edit_claim(epsilon=0.5), "its events cost"),
    "larger epsilon": (edit_claim(epsilon=2.0), "its events cost"),
    "epsilon is text": (edit_claim(epsilon="0.1"), "its events cost"),
    "epsilon not a number": (edit("privacy.json", lambda t: t.replace('"epsilon": ', '"epsilon": NaN, "x": ')), "nan"),
    "smaller epsilon by RDP": (edit_claim(epsilon_rdp=0.5), "its events cost"),
    "statement": (edit_claim(statement="(0.1, 1e-9)-DP"), "states statement"),
    "delta": (edit_claim(delta=1e-9), "states delta"),
    "relation": (edit_claim(relation="add_or_remove_one"), "states relation"),
    "unit": (edit_claim(unit="one person"), "states unit"),
    "size": (edit_claim(dataset_size=31), "states dataset_size"),
    "noise source": (edit_claim(noise_source="dice"), "states noise_source"),
    "one more claim": (edit_claim(certified_by="nobody"), "states certified_by"),
    "noise": (edit_event(noise_multiplier=100.0), "states events"),
    "steps": (edit_event(steps=1), "states events"),
    "sample rate": (edit_event(sample_rate=0.01), "states events"),
    "not private": (edit_claim(private=False), "NOT PRIVATE"),
    "newer schema": (edit_claim(schema=99), "another version"),
    "no digests": (edit_claim(sha256={}), "its digest differs"),
    "settings": (edit("config.toml", lambda t: t.replace("steps = 6", "steps = 5")), "its digest differs"),
    "weights": (swap_weights, "its digest differs"),
    "picture": (lambda r: (r / "samples.png").write_bytes(b"private"), "its digest differs"),
    "picture missing": (lambda r: (r / "samples.png").unlink(), "is missing"),
    "weights missing": (lambda r: (r / "model.safetensors").unlink(), "is missing"),
    "foreign file": (lambda r: (r / "metrics.jsonl").write_text("{}"), "does not belong"),
    "foreign folder": (lambda r: (r / "private").mkdir(), "does not belong"),
    "hidden file": (lambda r: (r / ".loss").write_text("0.5"), "does not belong"),
    "truncated": (edit("privacy.json", lambda t: t[: len(t) // 2]), "cannot be read as JSON"),
    "a list": (edit("privacy.json", lambda t: "[]"), "no JSON object"),
    "a little smaller epsilon": (edit_claim(epsilon=0.9995), "its events cost"),
    "a key twice": (
        edit("privacy.json", lambda t: t.replace('"epsilon": ', '"epsilon": 0.1, "epsilon": ')),
        "cannot be read as JSON",
    ),
    "a key of nothing": (edit_claim(certified_by=None), "states certified_by"),
    "nested without end": (edit("privacy.json", lambda t: "[" * 100_000), "cannot be read as JSON"),
    "an epsilon beyond numbers": (
        edit("privacy.json", lambda t: t.replace('"epsilon": ', f'"epsilon": 1{400 * "0"}, "x": ')),
        "states",
    ),
    "linked claim": (
        lambda r: ((r / "privacy.json").rename(r.parent / "p"), (r / "privacy.json").symlink_to(r.parent / "p")),
        "not a file of its own",
    ),
    "link": (
        lambda r: ((r / "config.toml").rename(r.parent / "c"), (r / "config.toml").symlink_to(r.parent / "c")),
        "not a file of its own",
    ),
}


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    return tmp_path_factory.mktemp("kept")


@pytest.fixture
def release(dpdm, photos, kept, tmp_path):
    """A copy of one finished release."""
    if not (kept / "run" / "release").exists():
        code, _, err = dpdm("train", photos, "--epsilon", 1, "--run", kept / "run", *SMALL)
        assert code == 0, err
    return shutil.copytree(kept / "run" / "release", tmp_path / "copy" / "release")


@pytest.mark.parametrize("name", TAMPERED)
def test_whatever_was_changed_is_refused_in_one_line(dpdm, release, name):
    tamper, said = TAMPERED[name]
    verify_release(release)
    tamper(release)
    code, out, err = dpdm("verify", release)
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert said in err


def test_settings_and_claim_changed_together_do_not_get_by(release):
    """Who knows the format can forge a release, but not one whose own numbers contradict each other."""
    from dpdm.training.release import digest

    settings = release / "config.toml"
    settings.write_text(settings.read_text().replace("steps = 6", "steps = 3"))
    claim = json.loads((release / "privacy.json").read_text())
    claim["sha256"]["config.toml"] = digest(settings)
    claim["steps"] = claim["events"][-1]["steps"] = 3
    (release / "privacy.json").write_text(json_text(claim))
    with pytest.raises(InputError, match="its events cost"):
        verify_release(release)


def rewritten(release, old, new, **claim):
    """Change the settings, and the claim and the digests with them, as someone who knows the format would."""
    from dpdm.training.release import digest

    settings = release / "config.toml"
    assert old in settings.read_text()
    settings.write_text(settings.read_text().replace(old, new))
    whole = json.loads((release / "privacy.json").read_text()) | claim
    whole["sha256"]["config.toml"] = digest(settings)
    (release / "privacy.json").write_text(json_text(whole))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("[data]", "# the losses were 0.5 and 0.4\n[data]"),
        ("[data]", "[data]\ncounts = [3, 2]"),
        ("[data]", "losses = [0.5]\n[data]"),
        ("[prior]", "[another]"),
        ("noise_multiplier = ", "noise_multiplier = 1e-200 # "),
        ("steps = 6", "steps = 6.5"),
        ("steps = 6", 'steps = "many"'),
    ],
)
def test_settings_that_no_run_writes_are_refused(dpdm, release, old, new):
    rewritten(release, old, new)
    code, out, err = dpdm("verify", release)
    assert (code, out, err.count("\n")) == (2, "", 1), err


def test_a_prior_that_the_plan_does_not_pay_for_is_refused(release):
    """Its releases are left out of settings and claim alike, and it stays in the weights."""
    from dpdm.config import decode_plan, read_toml
    from dpdm.privacy import OperatingSystemEntropy

    text = (release / "config.toml").read_text()
    table = read_toml(release / "config.toml")
    plan = dataclasses.replace(decode_plan(table["privacy"]), earlier=())
    table["privacy"].pop("earlier")
    table.pop("prior")
    rewritten(release, text, tomli_w.dumps(table), **plan.claim(entropy=OperatingSystemEntropy()))
    with pytest.raises(InputError, match="releases before its steps and its prior needs"):
        verify_release(release)


def test_weights_that_hold_more_than_the_network_are_refused(release):
    """What an audit plants must not be able to leave with a release."""
    import safetensors.torch
    import torch

    from dpdm.training.release import digest

    path = release / "model.safetensors"
    tensors = safetensors.torch.load_file(path) | {"canaries": torch.ones(3)}
    safetensors.torch.save_file(tensors, path)
    claim = json.loads((release / "privacy.json").read_text())
    claim["sha256"]["model.safetensors"] = digest(path)
    (release / "privacy.json").write_text(json_text(claim))
    with pytest.raises(InputError, match="do not fit together"):
        verify_release(release)


def test_what_claims_nothing_is_refused_loudly(dpdm, photos, tmp_path):
    settings = [setting for setting in SMALL if "epsilon" not in setting and "delta" not in setting]
    assert dpdm("train", photos, "--run", "open", *settings, "--set=privacy.kind=non-private")[0] == 0
    code, _, err = dpdm("verify", "open")
    assert (code, err.count("\n")) == (2, 1)
    assert "is NOT PRIVATE and must not be published" in err


def test_no_run_and_an_unfinished_one_are_told_apart(dpdm, tmp_path):
    assert "no run" in dpdm("verify", tmp_path)[2]
    (tmp_path / "half" / "private").mkdir(parents=True)
    (tmp_path / "half" / "private" / "journal.jsonl").write_text("")
    code, _, err = dpdm("verify", tmp_path / "half")
    assert (code, "unfinished" in err) == (2, True)


def test_images_are_not_made_with_weights_that_the_claim_is_not_about(dpdm, release):
    swap_weights(release)
    code, out, err = dpdm("sample", release, "-n", 3, "-o", "x.npz")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "its digest differs" in err


def test_a_release_is_its_own_again(trained, tmp_path):
    Release.load(trained).save(tmp_path / "again")
    verify_release(tmp_path / "again")


@pytest.mark.parametrize("rate", [0.1, 0.01, 0.001])
def test_no_attack_finds_more_than_the_bound(rate):
    """One Gaussian release has a known best attack; the bound is at it, and below what (ε, δ) alone gives."""
    from scipy.stats import norm

    events = [GaussianRelease(noise_multiplier=0.8)]
    relation = "add_or_remove_one"
    best = norm.cdf(norm.ppf(rate) + 1 / 0.8)
    bound = true_positive_rates(events, false_positive_rates=[rate], relation=relation)[0]
    assert best <= bound <= best * 1.02
    for delta in (1e-5, 1e-3):
        one = epsilon(events, delta=delta, relation=relation)
        assert bound <= min(2.718281828**one * rate + delta, 1 - 2.718281828**-one * (1 - delta - rate)) + 1e-6
    steps = [PoissonGaussianSteps(noise_multiplier=1.0, sample_rate=0.1, steps=100)]
    assert rate < true_positive_rates(steps, false_positive_rates=[rate], relation=relation)[0] < 1
    nothing = [GaussianRelease(noise_multiplier=0.05)]
    assert true_positive_rates(nothing, false_positive_rates=[rate], relation=relation) == [1]
