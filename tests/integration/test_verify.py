"""A release is verified as it was written, and refused, in one line, once anything about it was changed."""

import dataclasses
import json
import os
import shutil
import time

import pytest
import tomli_w
from small_run import SMALL

from dpdm.config import load_config
from dpdm.files import json_text
from dpdm.privacy import InsecureSeededEntropy
from dpdm.privacy.accounting import GaussianRelease, PoissonGaussianSteps, epsilon, true_positive_rates
from dpdm.runs import Release, Trainer, verify_release
from dpdm.runs.release import digest
from dpdm.runs.verification import Verified, percent
from dpdm.types import InputError


def test_a_release_is_verified_and_its_claim_put_in_plain_words(dpdm, trained):
    code, out, err = dpdm("verify", trained)
    assert code == 0, err
    claim = json.loads((trained / "release" / "privacy.json").read_text())
    assert claim["statement"] in out
    assert "One unit of protection is one image with its label" in out
    assert "The exact number, 30 images, is public" in " ".join(out.split())
    assert max(map(len, out.splitlines())) <= 120
    code, out, _ = dpdm("verify", trained / "release", "--json")
    found = json.loads(out)
    assert found["epsilon"] == pytest.approx(claim["epsilon"], abs=1e-4)
    assert found["epsilon"] <= found["epsilon_rdp"]
    one, tenth = found["true_positive_rates"]["0.01"], found["true_positive_rates"]["0.001"]
    assert 0.001 < tenth < one < 2.7183 * 0.01 + 1e-3  # (1, 1e-3)-DP allows no more
    for false, true in (("1", one), ("0.1", tenth)):
        said = f"Wrongly accusing {false} % of the unused ones finds at most {percent(true)} of the used ones."
        assert said in found["bounds"]


@pytest.mark.parametrize(
    ("rate", "said"), [(0.01930001, "1.94 %"), (0.0193, "1.93 %"), (0.00271, "0.28 %"), (0.5, "50 %"), (1.0, "100 %")]
)
def test_rates_are_rounded_up(rate, said):
    assert percent(rate) == said


@pytest.mark.parametrize(
    ("unit", "relation", "said"),
    [
        (
            "image",
            "add_or_remove_one",
            "One unit of protection is one image with its label. A person with several images is protected less. "
            "ε limits how surely anyone can tell whether the image was used at all. About 60,000 images were declared.",
        ),
        (
            "image",
            "replace_special",
            "One unit of protection is one image with its label. A person with several images is protected less. "
            "ε limits how surely anyone can tell whether the image or a blank in its place was used. The exact number, "
            "60,000 images, is public.",
        ),
        (
            "group",
            "add_or_remove_one",
            "One unit of protection is one group of images with their labels, such as all images of one person. "
            "ε limits how surely anyone can tell whether the images were used at all. About 60,000 groups were "
            "declared.",
        ),
        (
            "group",
            "replace_special",
            "One unit of protection is one group of images with their labels, such as all images of one person. "
            "ε limits how surely anyone can tell whether the images or blanks in their place were used. The exact "
            "number, 60,000 groups, is public.",
        ),
    ],
)
def test_what_is_protected_is_said_in_short_sentences(unit, relation, said):
    rates = {0.01: 0.02, 0.001: 0.0025}
    found = Verified(
        statement="",
        epsilon=1,
        epsilon_rdp=1,
        true_positive_rates=rates,
        unit=unit,
        relation=relation,
        dataset_size=60_000,
    )
    assert found.protects == said
    other = {"image": "training image", "group": "group of training images"}[unit]
    assert found.bounds == (
        f"An attacker has this folder, knows every other {other}, and guesses whether a given one was used. "
        "Wrongly accusing 1 % of the unused ones finds at most 2 % of the used ones. "
        "Wrongly accusing 0.1 % of the unused ones finds at most 0.25 % of the used ones."
    )
    assert all(len(sentence.split()) <= 25 for sentence in f"{found.protects} {found.bounds}".split(". "))


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
    "settings": (edit("config.toml", lambda t: t.replace("count = 6", "count = 5")), "its digest differs"),
    "weights": (swap_weights, "its digest differs"),
    "a picture": (lambda r: (r / "samples.png").write_bytes(b"private"), "does not belong"),
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
        "cannot be read as JSON",
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
        verify_release(kept / "run")
    return shutil.copytree(kept / "run" / "release", tmp_path / "copy" / "release")


@pytest.mark.parametrize("name", TAMPERED)
def test_whatever_was_changed_is_refused_in_one_line(dpdm, release, name):
    tamper, said = TAMPERED[name]
    tamper(release)
    code, out, err = dpdm("verify", release)
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert said in err


def test_settings_and_claim_changed_together_do_not_get_by(release):
    """Who knows the format can forge a release, but not one whose own numbers contradict each other."""
    settings = release / "config.toml"
    settings.write_text(settings.read_text().replace("count = 6", "count = 3"))
    claim = json.loads((release / "privacy.json").read_text())
    claim["sha256"]["config.toml"] = digest(settings)
    claim["steps"] = claim["events"][-1]["steps"] = 3
    (release / "privacy.json").write_text(json_text(claim))
    with pytest.raises(InputError, match="its events cost"):
        verify_release(release)


def rewritten(release, old, new, **claim):
    """Change the settings, and the claim and the digests with them, as someone who knows the format would."""
    settings = release / "config.toml"
    assert old in settings.read_text()
    settings.write_text(settings.read_text().replace(old, new))
    whole = json.loads((release / "privacy.json").read_text()) | claim
    whole["sha256"]["config.toml"] = digest(settings)
    (release / "privacy.json").write_text(json_text(whole))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("[facts]", "# the losses were 0.5 and 0.4\n[facts]"),
        ("[facts]", "[facts]\ncounts = [3, 2]"),
        ("[facts]", "losses = [0.5]\n[facts]"),
        ("[prior]", "[another]"),
        ("noise_multiplier = ", "noise_multiplier = 1e-200 # "),
        ("count = 6", "count = 6.5"),
        ("count = 6", 'count = "many"'),
    ],
)
def test_settings_that_no_run_writes_are_refused(dpdm, release, old, new):
    rewritten(release, old, new)
    code, out, err = dpdm("verify", release)
    assert (code, out, err.count("\n")) == (2, "", 1), err


def test_a_prior_that_the_plan_does_not_pay_for_is_refused(release):
    """Its releases are left out of settings and claim alike, and it stays in the weights."""
    from dpdm.config import decode_plan, encode, read_toml
    from dpdm.privacy import OperatingSystemEntropy

    text = (release / "config.toml").read_text()
    table = read_toml(release / "config.toml")
    plan = decode_plan(table["plan"])
    plan = dataclasses.replace(plan, releases=plan.poisson)
    table["plan"] = encode(plan)
    table.pop("prior")
    rewritten(release, text, tomli_w.dumps(table), **plan.claim(entropy=OperatingSystemEntropy()))
    with pytest.raises(InputError, match="the plan releases steps, and its settings need mean of all"):
        verify_release(release)


def test_weights_that_hold_more_than_the_network_are_refused(release):
    """What an audit plants must not be able to leave with a release."""
    import safetensors.torch
    import torch

    path = release / "model.safetensors"
    tensors = safetensors.torch.load_file(path) | {"canaries": torch.ones(3)}
    safetensors.torch.save_file(tensors, path)
    digested(release)
    with pytest.raises(InputError, match="do not fit together"):
        verify_release(release)


def digested(release, **claim):
    """Write the claim for the files as they lie there now."""
    whole = json.loads((release / "privacy.json").read_text()) | claim
    whole["sha256"] = {name: digest(release / name) for name in whole["sha256"]}
    (release / "privacy.json").write_text(json_text(whole))


def of_weights(change):
    """A forgery of the weights by a function of their tensors."""

    def forge(release):
        import safetensors.torch

        path = release / "model.safetensors"
        path.write_bytes(safetensors.torch.save(change(safetensors.torch.load_file(path))))
        digested(release)

    return forge


def one_prior_of(name, make):
    return of_weights(lambda tensors: tensors | {f"denoiser.preconditioning.prior.{name}": make(tensors)})


def more_centres(tensors):
    centres = {f"denoiser.preconditioning.prior.{name}": 2 for name in ("centres", "classes", "log_weights")}
    return {k: t.repeat_interleave(centres[k], 0) if k in centres else t for k, t in tensors.items()}


def header(change):
    """A forgery of the JSON before the weights."""

    def forge(release):
        path = release / "model.safetensors"
        content = path.read_bytes()
        end = 8 + int.from_bytes(content[:8], "little")
        text = change(content[8:end])
        text += b" " * (-len(text) % 8)
        path.write_bytes(len(text).to_bytes(8, "little") + text + content[end:])
        digested(release)

    return forge


def claim_without_steps(release):
    from dpdm.config import decode_plan, encode, read_toml
    from dpdm.privacy import OperatingSystemEntropy

    text, table = (release / "config.toml").read_text(), read_toml(release / "config.toml")
    plan = decode_plan(table["plan"])
    plan = dataclasses.replace(plan, releases=plan.full)
    table["plan"] = encode(plan)
    rewritten(release, text, tomli_w.dumps(table), **plan.claim(entropy=OperatingSystemEntropy()))


def facts(**changes):
    def forge(release):
        from dpdm.config import read_toml

        table = read_toml(release / "config.toml")
        rewritten(
            release, (release / "config.toml").read_text(), tomli_w.dumps(table | {"facts": table["facts"] | changes})
        )

    return forge


LOSSES = b"the losses were 0.5 and 0.4"
FORGED = {
    "steps that nobody paid for": (claim_without_steps, "centres, round 3, and its settings need mean of all"),
    "more centres than the settings have": (of_weights(more_centres), "do not fit together"),
    "classes that do not exist": (
        one_prior_of("classes", lambda t: t["denoiser.preconditioning.prior.classes"] + 123456789),
        "lacks centres of its classes",
    ),
    "a table of another rank": (
        one_prior_of("axes", lambda t: t["denoiser.preconditioning.prior.axes"][0]),
        "do not fit together",
    ),
    "weights with more digits": (
        of_weights(lambda tensors: {k: t.double() if t.is_floating_point() else t for k, t in tensors.items()}),
        "do not fit together",
    ),
    "weights that are no numbers": (
        of_weights(lambda tensors: {k: t * float("nan") if t.is_floating_point() else t for k, t in tensors.items()}),
        "not finite",
    ),
    "a note in the weights' header": (
        header(lambda text: text.replace(b'{"dtype"', b'{"note":"' + LOSSES + b'","dtype"', 1)),
        "holds more than weights",
    ),
    "spaces in the weights' header": (header(lambda text: text + b" " * 800), "holds more than weights"),
    "a histogram of labels": (facts(class_names={"cat": 100, "dog": 101}), "holds something in facts"),
    "a histogram in names": (facts(class_names=[["cat", {"count": 100}], "dog"]), "not as a run writes it"),
    "a size that is true": (facts(shape=[True, 8, 8]), "holds something in facts"),
    "numbers without end": (
        lambda release: rewritten(release, "count = 6", f"count = {'6' * 5000}"),
        "is not valid TOML",
    ),
    "tables without end": (
        lambda release: rewritten(release, "count = 6", f"count = 6\nmore = {'[' * 100_000}"),
        "is not valid TOML",
    ),
    "half an image": (
        lambda release: rewritten(release, "dataset_size = 30", "dataset_size = 30.5"),
        "plan.dataset_size = 30.5",
    ),
}


@pytest.mark.parametrize("name", FORGED)
def test_a_forgery_with_digests_that_fit_is_refused_in_one_line(dpdm, release, name):
    forge, said = FORGED[name]
    forge(release)
    code, out, err = dpdm("verify", release)
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert said in err


@pytest.mark.parametrize("statement", ["(0.1, 1e-9)-DP, add or remove one image", "NOT PRIVATE data: (0.1, 1e-9)-DP"])
def test_images_are_not_said_to_carry_a_claim_that_the_events_do_not_bear_out(dpdm, release, statement):
    edit_claim(statement=statement)(release)
    code, out, err = dpdm("sample", release, "-n", 3, "-o", "x.npz")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "states statement" in err


def test_a_run_with_a_known_seed_is_refused_loudly(dpdm, photos, tmp_path):
    config = load_config(str(photos), overrides=[text.removeprefix("--set=") for text in SMALL])
    data = config.data.open()
    sound = Trainer.from_config(config, data)
    seeded = Trainer(**{**vars(sound), "entropy": InsecureSeededEntropy(b"known")})
    seeded.fit(data).save(tmp_path / "seeded")
    code, out, err = dpdm("verify", tmp_path / "seeded")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "is NOT PRIVATE and must not be published" in err


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


@pytest.mark.parametrize("name", ["user.note", "trusted.note", "system.posix_acl_access", "security.note"])
@pytest.mark.parametrize("of", ["", "config.toml", "model.safetensors", "privacy.json"])
def test_words_in_attributes_or_an_access_list_are_refused(of, name, trained, monkeypatch):
    """Kind: what a file carries beside its bytes. Few systems let a test set all of these, so they are told here."""
    marked = trained / "release" / of

    def attributes(path, *, follow_symlinks):
        return ["security.selinux", *([name] if path == marked else [])]

    monkeypatch.setattr(os, "listxattr", attributes, raising=False)
    with pytest.raises(InputError, match="extended attributes or an access list"):
        verify_release(trained)


def test_what_a_system_marks_files_with_by_itself_is_no_word(trained, monkeypatch):
    monkeypatch.setattr(os, "listxattr", lambda *_, **__: ["security.selinux", "security.ima"], raising=False)
    verify_release(trained)


def test_an_error_of_arithmetic_in_the_weights_is_one_line(trained, monkeypatch):
    def fails(*_, **__):
        raise OverflowError

    monkeypatch.setattr("dpdm.methods.prior.require_possible", fails)
    with pytest.raises(InputError, match=r"is damaged \(OverflowError\)"):
        verify_release(trained)


def test_bounds_on_attacks_by_a_million_steps_are_computed_within_seconds():
    steps = [PoissonGaussianSteps(noise_multiplier=5.0, sample_rate=10 / 999, steps=10**6)]
    start = time.process_time()
    one = true_positive_rates(steps, false_positive_rates=[0.01], relation="replace_special")[0]
    assert 0.37 < one < 0.39  # an interval of 1e-4 makes it 0.378
    assert time.process_time() - start < 5


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
