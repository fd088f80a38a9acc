"""What an exported pipeline holds, file by file: the exporter writes it, and `verify` wants nothing else.

All follows from settings and claim but for numbers of weights. Of a network of `diffusers`, that library says the rest.
"""

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Shaped
from safetensors import safe_open
from torch import Tensor

from dpdm.config import decode_method
from dpdm.files import read_at_most, read_json, write_atomically
from dpdm.methods import DenoisingGenerator, Diffusion, ImageFacts, ImageGenerator, Method, PublicPart
from dpdm.networks import DiffusersFolder, DiffusersNetwork, KLCodec, TextNetwork, digest_of_part
from dpdm.networks.diffusers_unet import imported
from dpdm.networks.pipeline import CLAIM, NAMED, SHA256, WEIGHTS
from dpdm.networks.text_folder import AS_THEY_ARE
from dpdm.privacy import AnyPlan
from dpdm.runs.exported import files_of
from dpdm.runs.public import require_needed
from dpdm.runs.readme import ADAPTER, LOW_RANK, OF_DPDM, PLAIN, PLAIN_WITH_CLASSES, TEXT_TO_IMAGE, readme_of
from dpdm.runs.release import untrained
from dpdm.runs.run_folder import MANIFEST, OF_RELEASE
from dpdm.runs.text_pipeline import PLAIN_INDEX, SAMPLING_OF_LATENTS, TEXT_INDEX, scheduler_of
from dpdm.runs.weights import Layout, head_of, layout_of, save_weights
from dpdm.types import InputError, is_of_memory

INDEX_FILE = "model_index.json"
README = "README.md"
CARRIED = ("config.toml", "privacy.json")
"""The files of a release that an export has, too."""

_UNET, _SCHEDULER = "unet/config.json", "scheduler/scheduler_config.json"
_GENERATOR = "generator/config.json"
_OF_GENERATOR = "generator."  # before the names of a generator's weights, in a pipeline
_INSTALL = "pip install 'dpdm[diffusers]', and load it by dpdm.runs.pipeline.DPDMPipeline.from_pretrained"
_CLASS, _VERSION = "_class_name", "_diffusers_version"
_A_VERSION = re.compile(r"\d{1,3}(\.\d{1,3}){1,2}(\.?(a|b|rc|dev|post)\d{1,3})?", re.ASCII)
_MOST_SETTINGS, _MOST_SIDES, _MOST_SIDE = 2**25, 8, 2**40
_PART = 2**22  # numbers read at a time
_SLACK = 2**12  # bytes of a text that are read beside twice what there should be, to say what is wrong
_AGAIN = "export the run again"


class Text(NamedTuple):
    """A JSON file: what it says beside claim and version, and the keys that every version of `diffusers` writes."""

    content: dict[str, Any]
    always: frozenset[str]


@dataclass(frozen=True)
class Export:
    """What an export holds beside `config.toml`, `privacy.json` and the manifest.

    Args:
        texts: Its JSON files.
        weights: The tensors of its files of safetensors; on "meta" where it is but said what there must be.
        readme: Its README.
        parts: The folders of public parts that it has copies of.
    """

    texts: Mapping[str, Text]
    weights: Mapping[str, Mapping[str, Shaped[Tensor, "..."]]]
    readme: str
    parts: tuple[str, ...] = ()


def export_of(generator: ImageGenerator, settings: Mapping[str, Any], statement: str, *, whole: bool = True) -> Export:
    """Return what is exported of a generator, which may be on "meta".

    Args:
        generator: The generator.
        settings: The release's, as `config.toml` holds them.
        statement: The claim in one line.
        whole: Whether a text-to-image pipeline is exported as a whole, and not its low rank alone.

    Raises:
        InputError: It is a network of `diffusers`, which is not installed; or there is no low rank.
    """
    said = partial(readme_of, statement, generator.facts.class_names)
    if not isinstance(generator, DenoisingGenerator):
        return _of_dpdm(generator, settings, said)
    network = generator.denoiser.network
    if isinstance(network, TextNetwork):
        return _of_texts(generator, network, said) if whole else _adapter(network, said)
    if isinstance(network, DiffusersNetwork) and generator.trajectories is None:  # draws begin with noise alone
        return _plain(generator, network, settings, said)
    return _of_dpdm(generator, settings, said)


def _of_dpdm(generator: ImageGenerator, settings: Mapping[str, Any], said: Callable[..., str]) -> Export:
    state = generator.state_dict()
    sizes = {name: list(tensor.shape) for name, tensor in state.items()}
    index = {_CLASS: f"DPDMPipeline ({_INSTALL})", "generator": ["dpdm.runs.pipeline", "Generator"]}
    own = {_CLASS: "Generator", "settings": settings, "sizes": sizes}
    weights = {f"generator/{WEIGHTS}": {f"{_OF_GENERATOR}{name}": tensor for name, tensor in state.items()}}
    texts = {INDEX_FILE: _as_said(index), _GENERATOR: _as_said(own)}
    return Export(texts, weights, said(OF_DPDM, low_rank=False))


def _plain(
    generator: DenoisingGenerator, network: DiffusersNetwork, settings: Mapping[str, Any], said: Callable[..., str]
) -> Export:
    method, seen = decode_method(dict(settings)), generator.seen
    assert isinstance(method, Diffusion)
    assert isinstance(method.network, DiffusersFolder)
    spec, low_rank = method.network.spec, network.low_rank()
    unet = spec.config(num_class_embeds=spec.with_classes(seen.num_classes), sides=seen.shape[1:])
    code = PLAIN_WITH_CLASSES if network.with_classes else PLAIN
    bordered = seen != generator.facts
    texts = {
        INDEX_FILE: _as_said(PLAIN_INDEX),
        _UNET: _said_by("UNet2DModel", unet),
        _SCHEDULER: _said_by("DDPMScheduler", scheduler_of(generator)),
    }
    return Export(texts, _merged(network), said(code, low_rank=bool(low_rank), bordered=bordered))


def _of_texts(generator: DenoisingGenerator, network: TextNetwork, said: Callable[..., str]) -> Export:
    assert generator.folder is not None
    assert isinstance(generator.codec, KLCodec)
    unet = generator.folder.spec.config(sides=generator.seen.shape[1:])
    bordered = generator.codec.sides != generator.facts.shape[1:]
    texts = {
        INDEX_FILE: _as_said(TEXT_INDEX),
        _UNET: _said_by("UNet2DConditionModel", unet),
        _SCHEDULER: _said_by("DDIMScheduler", {**scheduler_of(generator), **SAMPLING_OF_LATENTS}),
    }
    readme = said(TEXT_TO_IMAGE, low_rank=network.rank > 0, bordered=bordered)
    return Export(texts, _merged(network), readme, AS_THEY_ARE)


def _adapter(network: TextNetwork, said: Callable[..., str]) -> Export:
    if not network.rank:
        raise InputError("this run trained parts of the public unet itself: name its pipeline by --public")
    return Export({}, {LOW_RANK: network.low_rank()}, said(ADAPTER, low_rank=False))


def _merged(network: DiffusersNetwork) -> dict[str, Mapping[str, Tensor]]:
    """Return the files of a network's weights: low rank merged into them and, where there is any, low rank alone."""
    alone = {LOW_RANK: network.low_rank()} if network.rank else {}
    return {f"unet/{WEIGHTS}": network.merged(), **alone}


def _as_said(content: Mapping[str, Any]) -> Text:
    return Text(dict(content), frozenset(content))


def _said_by(name: str, asked: Mapping[str, Any]) -> Text:
    """Return what a class of `diffusers` says of itself that is made as `asked`."""
    with torch.device("meta"):
        made = getattr(imported("diffusers"), name)(**asked)
    return Text(json.loads(made.to_json_string()), frozenset({_CLASS, *asked}))


def write_export(folder: Path, export: Export, statement: str) -> None:
    """Write what is exported into a folder, the claim into each file."""
    version = {_VERSION: imported("diffusers").__version__}
    for name, text in export.texts.items():
        _write(folder / name, _spelt(text.content | version | {CLAIM: statement}))
    for name, tensors in export.weights.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        save_weights(folder / name, tensors, _beside(statement))
    _write(folder / README, export.readme)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda temporary: temporary.write_bytes(text.encode()))


def require_export(
    folder: Path,
    method: Method,
    plan: AnyPlan,
    facts: ImageFacts,
    public: Sequence[PublicPart],
    settings: Mapping[str, Any],
    privacy: Mapping[str, Any],
) -> None:
    """Raise InputError unless a folder holds what an export of these settings and this claim does, and no more.

    That its weights follow from those of a release is not checked: `privacy.json` has but a digest of these. Nothing
    of the size of a network is made.

    Raises:
        InputError: A file, a key, a value or a tensor is not as it should be; or `diffusers` is needed and missing.
    """
    statement = str(privacy["statement"])
    if not SHA256.fullmatch(str(privacy["sha256"].get(OF_RELEASE))):
        raise InputError(f"{folder / 'privacy.json'} holds no digest of the {OF_RELEASE} of its release: {_AGAIN}")
    try:
        generator = untrained(method, facts, _sizes_in(folder / _GENERATOR))
        require_needed(public, method, plan, generator)
        alone = (folder / LOW_RANK).exists() and not (folder / INDEX_FILE).exists()
        export = export_of(generator, settings, statement, whole=not alone)
    except (LookupError, TypeError, RuntimeError, ValueError) as error:
        if isinstance(error, InputError) or is_of_memory(error):
            raise
        raise InputError(f"{folder} is damaged ({type(error).__name__}): its files do not fit together") from None
    _require_files(folder, export)
    readme = export.readme.encode()
    if read_at_most(folder / README, 2 * len(readme) + _SLACK) != readme:
        raise InputError(f"{folder / README} does not say what an export of this claim says")
    if len({_require_text(folder / name, text, statement) for name, text in export.texts.items()}) > 1:
        raise InputError(f"{folder} names several versions of diffusers under {_VERSION}: {_AGAIN}")
    _require_public_parts(folder, export.parts, public)
    for name, tensors in export.weights.items():
        _require_weights(folder / name, layout_of(tensors), statement)
    if _GENERATOR in export.texts:
        path = folder / "generator" / WEIGHTS
        with safe_open(path, "pt") as file:
            method.require_possible(partial(_read, file, below=_OF_GENERATOR), plan, facts, str(path))


def _sizes_in(path: Path) -> dict[str, tuple[int, ...]] | None:
    """Return the shapes that the settings of a generator declare, of which some follow from noisy sums alone."""
    if not path.exists():
        return None
    sizes = read_json(path, most=_MOST_SETTINGS).get("sizes")
    shapes = sizes.values() if isinstance(sizes, dict) else [None]
    for shape in shapes:
        if not isinstance(shape, list) or len(shape) > _MOST_SIDES:
            raise InputError(f"{path} declares no sizes of weights: {_AGAIN}")
        if not all(type(side) is int and 0 <= side < _MOST_SIDE for side in shape):
            raise InputError(f"{path} declares sizes of weights that are none: {_AGAIN}")
    assert isinstance(sizes, dict)
    return {name: tuple(shape) for name, shape in sizes.items()}


def _require_files(folder: Path, export: Export) -> None:
    """Raise InputError unless the folder holds the export's files, and beside them those of public parts alone."""
    wanted, there = {*CARRIED, README, MANIFEST, *export.texts, *export.weights}, {*files_of(folder)}
    copies = {f"{part}/{name}" for part in export.parts for name in NAMED}
    for name in sorted(there - wanted - copies):
        raise InputError(f"{folder / name} does not belong to the export: take it away, it is covered by no claim")
    for name in sorted(wanted - there):
        raise InputError(f"{folder / name} is missing: {_AGAIN}")


def _require_public_parts(folder: Path, parts: Iterable[str], public: Sequence[PublicPart]) -> None:
    """Raise InputError if a part that no private step changes is another than the claim names."""
    named = {part.name.rpartition("/")[2]: part.sha256 for part in public}
    for part in parts:
        if digest_of_part(folder / part) != (sha256 := named.get(part, "that of none")):
            raise InputError(f"{folder / part} is another part than the claim names: its SHA-256 is {sha256}")


def _require_text(path: Path, text: Text, statement: str) -> str:
    """Return the version of `diffusers` that a JSON file names; raise InputError unless it says just what it should.

    Another version than the one that is here may lack keys which nobody asked for.
    """
    expected = text.content | {CLAIM: statement}
    most = 2 * len(_spelt(expected)) + _SLACK
    found = read_json(path, most=most)
    if read_at_most(path, most) != _spelt(found).encode():
        raise InputError(f"{path} is not as an export writes it: another spelling or order is covered by no claim")
    version = found.get(_VERSION)
    if not isinstance(version, str) or not _A_VERSION.fullmatch(version):
        raise InputError(f"{path} names no version of diffusers under {_VERSION}: {_AGAIN}")
    here = expected.get(_VERSION, version)
    remedy = _AGAIN if version == here else f"diffusers {version} wrote it, and {here} is here: {_AGAIN}, or use that"
    for key in sorted((found.keys() | expected.keys()) - {_VERSION}):
        if key not in expected:
            raise InputError(f"{path} says {ascii(key)[1:-1][:80]}, which no export of this claim says: {remedy}")
        if key not in found:
            if version != here and key not in (*text.always, CLAIM):
                continue
            raise InputError(f"{path} does not say {key}: {remedy}")
        if _spelt(found[key]) != _spelt(expected[key]):
            was, should = (ascii(each)[:80] for each in (found[key], expected[key]))
            raise InputError(f"{path} says {key} = {was}, and of this claim it is {should}: {remedy}")
    return version


def _require_weights(path: Path, layout: Layout, statement: str) -> None:
    """Raise InputError unless a file holds finite weights of this layout, the claim, and nothing else."""
    head = head_of(layout, _beside(statement))
    size = len(head) + sum(dtype.itemsize * math.prod(shape) for dtype, shape in layout.values())
    with path.open("rb") as file:
        if file.read(len(head)) != head:
            raise InputError(f"{path} does not hold the claim and the weights that its settings have: {_AGAIN}")
    if size != (found := path.stat().st_size):
        raise InputError(f"{path} has {found:,} bytes, and its weights have {size:,}: {_AGAIN}")
    with safe_open(path, "pt") as file:
        for name, (_, shape) in layout.items():
            rows = max(1, _PART // max(1, math.prod(shape[1:])))
            for start in range(0, shape[0] if shape else 1, rows):
                if not _read(file, name, slice(start, start + rows)).isfinite().all():
                    raise InputError(f"{path} holds weights that are not finite: a generator that draws nothing")


def _read(file: Any, name: str, rows: slice = slice(None), *, below: str = "") -> Tensor:  # noqa: ANN401 (the library's)
    """Return a tensor of a file that was checked, or some of its rows."""
    whole = file.get_slice(f"{below}{name}")
    shape = whole.get_shape()
    if not shape or 0 in shape:
        found: Tensor = file.get_tensor(f"{below}{name}")
        return found[rows] if shape else found
    start, stop, _ = rows.indices(shape[0])
    part: Tensor = whole[start : max(start, stop)]
    return part


def _spelt(content: object) -> str:
    """Return the one text of what a JSON file of an export says: as `diffusers` writes it."""
    return json.dumps(content, indent=2, sort_keys=True) + "\n"


def _beside(statement: str) -> dict[str, str]:
    """Return what a file of weights says beside their layout: `diffusers` asks for a format."""
    return {"format": "pt", CLAIM: statement}
