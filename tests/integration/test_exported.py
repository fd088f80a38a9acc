"""A forged export is refused, whatever is forged in it; and who asks an export for a release is told what it is."""

import json
import os
import shutil
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from small_photos import save

from diffusers_pipelines import save_pipeline, save_text_pipeline
from dpdm import Trainer, load_config
from dpdm.data import ImageDataset
from dpdm.files import read_json, write_json
from dpdm.methods import Prior, PriorAlone
from dpdm.runs import verify_release
from dpdm.runs.exported import write_manifest
from dpdm.types import InputError

export_pipeline = pytest.importorskip("dpdm.runs.pipeline").export_pipeline
pytest.importorskip("peft")
pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning:diffusers.*")

INDEX, UNET, SCHEDULER = "model_index.json", "unet/config.json", "scheduler/scheduler_config.json"
OWN, OF_OWN = "generator/config.json", "generator/diffusion_pytorch_model.safetensors"
OF_UNET, LOW_RANK = "unet/diffusion_pytorch_model.safetensors", "pytorch_lora_weights.safetensors"
CLAIM, VERSION = "_dpdm_claim", "_diffusers_version"

KINDS = {
    "own": ((INDEX, OWN), (OF_OWN,)),
    "plain": ((INDEX, UNET, SCHEDULER), (OF_UNET, LOW_RANK)),
    "texts": ((INDEX, UNET, SCHEDULER), (OF_UNET, LOW_RANK)),
    "norms": ((INDEX, UNET, SCHEDULER), (OF_UNET,)),
    "adapter": ((), (LOW_RANK,)),
}
"""The JSON files of each kind of export, and its weights that are not public."""

TEXTS = [(kind, name) for kind, (texts, _) in KINDS.items() for name in texts]
WEIGHTS = [(kind, name) for kind, (_, weights) in KINDS.items() for name in weights]


def of_prior(home):
    images = np.random.default_rng(0).integers(0, 256, (64, 8, 8, 1), dtype=np.uint8)
    method = PriorAlone(prior=Prior(centres=1))
    plan = method.plan(epsilon=1.0, dataset_size=64, delta=1e-3)
    Trainer(method=method, plan=plan, ledger=None, run=home / "run").fit(ImageDataset(images=images, name="scans"))
    export_pipeline(home / "run", home / "out")


def of_pipeline(home, kind, trains):
    texts = kind != "plain"
    (home / "public").mkdir()
    if texts:
        save_text_pipeline(home / "public" / "texts")
    else:
        save_pipeline(home / "public" / "texts", in_channels=3, out_channels=3)
    overrides = [
        f"network.kind={'text-to-image' if texts else 'diffusers'}",
        f"network.source={home / 'public' / 'texts'}",
        f"network.trains={trains}",
        *("data.size=8", "machine.precision=float32", "sampler.steps=2", "loss.noise_multiplicity=1"),
        *("privacy.delta=1e-3", "privacy.epsilon=4.0", "privacy.dataset_size=30"),
        *("privacy.steps=1", "privacy.expected_batch_size=8"),
    ]
    config = load_config(str(save(home / "photos")), method="diffusion", overrides=overrides)
    data = config.data.open()
    Trainer.from_config(config, data, run=home / "run", ledger=lambda: None).fit(data)
    export_pipeline(home / "run", home / "out", public=home / "public" / "texts" if texts else None)
    if kind == "texts":
        export_pipeline(home / "run", home / "adapter")


@pytest.fixture(scope="module")
def made(tmp_path_factory, one_thread):
    """Return an export of a kind."""

    @cache
    def run_of(kind):
        home = tmp_path_factory.mktemp(kind)
        if kind == "own":
            of_prior(home)
        else:
            of_pipeline(home, kind, "norms" if kind == "norms" else "lora:2")
        return home

    return lambda kind: run_of("texts") / "adapter" if kind == "adapter" else run_of(kind) / "out"


@pytest.fixture
def export(made, tmp_path):
    """Return a copy of an export of a kind, to forge."""
    return lambda kind: Path(shutil.copytree(made(kind), tmp_path / "out"))


def refused(out, match):
    """Check that an export is refused in one line, though its manifest is written anew."""
    (out / "manifest.json").unlink()
    write_manifest(out)
    with pytest.raises(InputError, match=match) as error:
        verify_release(out)
    assert "\n" not in str(error.value)


def write(path, content):
    """Write a JSON file as an export does."""
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


@pytest.mark.parametrize("kind", KINDS)
def test_an_export_of_each_kind_is_verified(kind, export):
    found = verify_release(export(kind))
    assert found.exported
    assert "-DP" in found.statement


@pytest.mark.parametrize("kind", KINDS)
def test_an_export_is_the_same_files_again(kind, made, tmp_path):
    out = made(kind)
    home = out.parent
    public = home / "public" / "texts" if kind in ("texts", "norms") else None
    export_pipeline(home / "run", tmp_path / "again", public=public)
    assert read_json(tmp_path / "again" / "manifest.json") == read_json(out / "manifest.json")


def changed_value(said):
    key = next(key for key in sorted(said) if not key.startswith("_"))
    return said | {key: "words"}


def without(key):
    return lambda said: {name: value for name, value in said.items() if name != key}


FORGED_TEXTS = {
    "another claim": (lambda said: said | {CLAIM: "(0.001, 1e-12)-DP"}, f"says {CLAIM} = "),
    "no claim": (without(CLAIM), f"does not say {CLAIM}"),
    "another class": (lambda said: said | {"_class_name": "Words"}, "says _class_name = "),
    "no class": (without("_class_name"), "does not say _class_name"),
    "a free key": (lambda said: said | {"note": "patient 17"}, "says note, which no export of this claim says"),
    "a hidden key": (lambda said: said | {"_note": "patient 17"}, "says _note, which no export of this claim says"),
    "a key of lines": (lambda said: said | {"two\nlines": 1}, r"says two\\nlines, which no export of this claim says"),
    "another value": (changed_value, "and of this claim it is"),
    "no version": (without(VERSION), "names no version of diffusers"),
    "words as a version": (lambda said: said | {VERSION: "patient 17"}, "names no version of diffusers"),
    "a long text": (lambda said: said | {"note": "patient 17 " * 100_000}, "is larger than"),
    "no object": (lambda said: [said], "holds no JSON object"),
}


@pytest.mark.parametrize(("kind", "name"), TEXTS)
@pytest.mark.parametrize("forged", FORGED_TEXTS)
def test_what_a_text_of_an_export_says_else_is_refused(kind, name, forged, export):
    out, (change, match) = export(kind), FORGED_TEXTS[forged]
    write(out / name, change(read_json(out / name)))
    refused(out, f"{name}.* {match}|{name} {match}")


@pytest.mark.parametrize(("kind", "name"), TEXTS)
@pytest.mark.parametrize("spelling", ["spaces", "order", "numbers", "twice", "escapes"])
def test_another_spelling_of_a_text_is_refused(kind, name, spelling, export):
    path = export(kind) / name
    said, text = read_json(path), path.read_text()
    other = {
        "spaces": json.dumps(said, sort_keys=True),
        "order": json.dumps(dict(reversed(said.items())), indent=2),
        "numbers": text.replace("8", "8.0", 1) if name != INDEX else text + " ",
        "twice": text.replace("{\n", '{\n  "_class_name": "Words",\n', 1),
        "escapes": text.replace("_class_name", "\\u005fclass_name", 1),
    }[spelling]
    assert other != text
    path.write_text(other)
    refused(path.parents[len(Path(name).parts) - 1], f"{name}.*(is not as an export writes it|cannot be read|says )")


@pytest.mark.parametrize(
    ("kind", "where", "change"),
    [
        ("own", ("settings", "facts", "name"), "patient 17"),
        ("own", ("settings", "seed"), 17),
        ("own", ("settings", "note"), "patient 17"),
        ("own", ("sizes", "mixture.axes"), [2, 2, 2]),
        ("own", ("sizes", "note"), [17]),
        ("own", ("sizes", "mixture.axes"), ["patient 17"]),
        ("own", ("sizes",), "patient 17"),
        ("own", ("sizes", "mixture.axes"), [2**40, 1, 1]),
        ("own", ("sizes", "mixture.vectors"), [2**39, 2**39]),
        ("own", ("sizes", "mixture.vectors"), []),
        ("plain", ("norm_eps",), 17.0),
        ("plain", ("block_out_channels",), [8, 17]),
        ("texts", ("cross_attention_dim",), 17),
        ("norms", ("sample_size",), 17),
    ],
)
def test_settings_of_an_export_are_those_of_its_claim(kind, where, change, export):
    out = export(kind)
    name = OWN if kind == "own" else UNET
    said = read_json(out / name)
    inner = said
    for key in where[:-1]:
        inner = inner[key]
    inner[where[-1]] = change
    write(out / name, said)
    refused(out, r"and of this claim it is|declares|is damaged")


def test_another_version_of_diffusers_may_lack_keys_that_nobody_asked_for(export):
    out = export("plain")
    for name in KINDS["plain"][0]:
        write(out / name, read_json(out / name) | {VERSION: "0.30.0.dev0"})
    said = read_json(out / UNET)
    assert "class_embed_type" in said
    write(out / UNET, without("class_embed_type")(said))
    (out / "manifest.json").unlink()
    write_manifest(out)
    assert verify_release(out).exported
    write(out / UNET, without("norm_eps")(said))
    refused(out, "does not say norm_eps: diffusers 0.30.0.dev0 wrote it, and .* is here")
    write(out / UNET, without("class_embed_type")(said) | {VERSION: "0.31.0"})
    refused(out, "names several versions of diffusers")


def test_the_version_that_is_here_lacks_no_key(export):
    out = export("plain")
    write(out / UNET, without("class_embed_type")(read_json(out / UNET)))
    refused(out, "does not say class_embed_type")


def parts(path):
    """Return what a header says, and the numbers."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def joined(path, head, numbers):
    text = json.dumps(head, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + numbers)


def more_tensors(head, numbers):
    more = {"dtype": "U8", "shape": [64], "data_offsets": [len(numbers), len(numbers) + 64]}
    return head | {"private_images": more}, numbers + bytes(64)


def another_name(head, numbers):
    last = [*head][-1]
    return {("words" if name == last else name): entry for name, entry in head.items()}, numbers


def another_shape(head, numbers):
    last = [*head][-1]
    return head | {last: head[last] | {"shape": [*head[last]["shape"], 1]}}, numbers


def another_type(head, numbers):
    last = [*head][-1]
    return head | {last: head[last] | {"dtype": "I32" if head[last]["dtype"] == "F32" else "I64"}}, numbers


def one_less(head, numbers):
    last = [*head][-1]
    start, _ = head[last]["data_offsets"]
    return {name: entry for name, entry in head.items() if name != last}, numbers[:start]


def a_gap(head, numbers):
    last = [*head][-1]
    start, stop = head[last]["data_offsets"]
    return head | {last: head[last] | {"data_offsets": [start + 8, stop + 8]}}, numbers[:start] + bytes(8) + numbers[
        start:
    ]


def not_finite(head, numbers):
    return head, numbers[:-8] + b"\xff" * 8


FORGED_WEIGHTS = {
    "a note": lambda head, numbers: (head | {"__metadata__": head["__metadata__"] | {"note": "words"}}, numbers),
    "no claim": lambda head, numbers: (head | {"__metadata__": {"format": "pt"}}, numbers),
    "another claim": lambda head, numbers: (head | {"__metadata__": {"format": "pt", CLAIM: "(0.1, 0)-DP"}}, numbers),
    "another order": lambda head, numbers: (dict(reversed(head.items())), numbers),
    "more tensors": more_tensors,
    "one less": one_less,
    "another name": another_name,
    "another shape": another_shape,
    "another type": another_type,
    "a gap": a_gap,
    "more bytes": lambda head, numbers: (head, numbers + b"patient 17"),
    "fewer bytes": lambda head, numbers: (head, numbers[:-4]),
    "not finite": not_finite,
}


@pytest.mark.parametrize(("kind", "name"), WEIGHTS)
@pytest.mark.parametrize("forged", FORGED_WEIGHTS)
def test_what_weights_of_an_export_hold_else_is_refused(kind, name, forged, export):
    out = export(kind)
    head, numbers = parts(out / name)
    assert head["__metadata__"].keys() == {"format", CLAIM}
    joined(out / name, *FORGED_WEIGHTS[forged](head, numbers))
    refused(out, f"{name} (does not hold the claim and the weights|has .* bytes, and its weights|holds weights that)")


@pytest.mark.parametrize("content", [b"", b"words", b"\xff" * 64, (2**62).to_bytes(8, "little")])
def test_a_file_that_is_none_of_weights_is_refused(content, export):
    out = export("own")
    (out / OF_OWN).write_bytes(content)
    refused(out, f"{OF_OWN} does not hold the claim and the weights")


def test_an_export_of_a_prior_that_no_run_can_have_made_is_refused(export):
    out = export("own")
    head, numbers = parts(out / OF_OWN)
    start, stop = head["generator.mixture.variances"]["data_offsets"]
    joined(out / OF_OWN, head, numbers[:start] + np.full((stop - start) // 8, -1.0).tobytes() + numbers[stop:])
    refused(out, OF_OWN)


@pytest.mark.parametrize("kind", KINDS)
def test_files_of_another_kind_of_export_are_refused(kind, export):
    out = export(kind)
    (out / "generator").mkdir(exist_ok=True)
    (out / "vae").mkdir(exist_ok=True)
    name = "vae/words.json" if kind == "own" else OWN
    write(out / name, {"sizes": {}} if kind != "own" else {"note": "patient 17"})
    if kind == "own":
        (out / "vae" / "words.json").rename(out / "vae" / "config.json")
    shutil.rmtree(out / "vae") if not any((out / "vae").iterdir()) else None
    shutil.rmtree(out / "generator") if not any((out / "generator").iterdir()) else None
    refused(out, "does not belong to the export")


@pytest.mark.parametrize(("kind", "name"), [*TEXTS, *WEIGHTS, ("texts", "vae"), ("own", "README.md")])
def test_an_export_without_one_of_its_files_is_refused(kind, name, export):
    out = export(kind)
    path = out / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    if path.parent != out and not any(path.parent.iterdir()):
        path.parent.rmdir()
    refused(out, "is missing|does not belong to the export|is damaged|does not say what an export")


@pytest.mark.parametrize("kind", KINDS)
def test_the_readme_is_that_of_its_kind(kind, export, made):
    out = export(kind)
    other = made("own" if kind != "own" else "plain") / "README.md"
    statement = read_json(out / "privacy.json")["statement"]
    theirs = read_json(other.parent / "privacy.json")["statement"]
    (out / "README.md").write_text(other.read_text().replace(theirs, statement))
    refused(out, "README.md does not say what an export of this claim says")


@pytest.mark.parametrize("kind", KINDS)
def test_an_export_behind_a_link_is_refused(kind, made, tmp_path):
    (tmp_path / "linked").symlink_to(made(kind))
    with pytest.raises(InputError, match="linked is a link, and where it leads may be any words"):
        verify_release(tmp_path / "linked")


@pytest.mark.parametrize("digest", ["patient 17", None, ["words"], "0" * 65, "0" * 64 + "\n"])
def test_the_digest_of_weights_that_are_elsewhere_is_a_digest(digest, export):
    out = export("own")
    claim = read_json(out / "privacy.json")
    claim["sha256"]["model.safetensors"] = digest
    write_json(out / "privacy.json", claim)
    refused(out, r"holds no digest of the model.safetensors")


def test_a_manifest_has_one_order(export):
    out = export("own")
    digests = read_json(out / "manifest.json")["sha256"]
    write_json(out / "manifest.json", {"sha256": dict(reversed(digests.items()))})
    with pytest.raises(InputError, match="is not as an export writes it"):
        verify_release(out)


@pytest.mark.parametrize(
    "line",
    [
        "sample {out} -n 3 -o made.npz",
        "report {out} -o page.html",
        "export {out} -o again",
        "compare {out} --reference digits:test",
        "train digits --method=evolution --public={out} --epsilon=8 --run=next",
        "pretrain {out} --like digits -o start",
    ],
)
def test_who_asks_an_export_for_a_release_is_told_what_it_is(line, made, dpdm, tmp_path):
    code, out, err = dpdm(*line.format(out=made("own")).split())
    told = [text for text in err.splitlines() if text.startswith("dpdm: ")]
    assert (code, len(told), out) == (2, 1, ""), err
    assert "is an exported pipeline, for diffusers to load: name the run, or its release/" in told[0]
    assert list(tmp_path.iterdir()) == []


def test_an_export_of_dpdm_s_own_needs_no_diffusers_to_verify(export, monkeypatch):
    out = export("own")
    for name in ("diffusers", "peft", "transformers"):
        monkeypatch.setitem(__import__("sys").modules, name, None)
    assert verify_release(out).exported
    assert os.listdir(out)


def test_an_export_of_a_network_of_diffusers_says_what_it_needs(export, monkeypatch):
    out = export("plain")
    monkeypatch.setitem(__import__("sys").modules, "diffusers", None)
    with pytest.raises(InputError, match=r"needs diffusers: pip install 'dpdm\[diffusers\]'"):
        verify_release(out)


def test_weights_of_an_export_may_be_of_any_type_that_a_release_has(tmp_path):
    from safetensors.torch import load_file

    from dpdm.runs.as_exported import _beside, _require_weights
    from dpdm.runs.weights import _TYPES, layout_of, save_weights

    tensors = {str(kind): torch.ones(3, 2).to(kind) for kind in _TYPES.values()}
    tensors |= {"number": torch.tensor(2.0), "none": torch.empty(0, 3), "last": torch.ones(2, dtype=torch.bool)}
    save_weights(tmp_path / "some", tensors, _beside("a claim"))
    _require_weights(tmp_path / "some", layout_of(tensors), "a claim")
    read = load_file(tmp_path / "some")
    assert all(torch.equal(read[name], value) for name, value in tensors.items())
