"""The folder of a start: a network that was trained on public images, what it was made with and for."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor

from dpdm.config import encode, read_toml
from dpdm.config.earlier import START, earlier_of
from dpdm.data import ImageDataset, known_by
from dpdm.data.identity import DIGEST
from dpdm.files import damaged, digest, write_toml
from dpdm.ledger import Records
from dpdm.methods.start import weights_digest
from dpdm.methods.values import PublicStart
from dpdm.privacy import Earlier
from dpdm.runs.public import as_settings, part_of, read_parts
from dpdm.runs.weights import read_layout, read_weights, save_weights
from dpdm.types import InputError

WEIGHTS = "weights.safetensors"
VERSION = 2
_NETWORK, _KNOWN = "network.", "known."
_REMEDY = "make the start again, by dpdm pretrain"


def require_free(folder: Path) -> None:
    """Raise InputError if a start is in the folder already."""
    if (folder / START).exists():
        raise InputError(f"{folder} holds a start already: choose another folder")


def known_records(public: ImageDataset) -> list[Records]:
    """Return the sets that these images are of, as a ledger would know them again."""
    return [Records.of(each) for each in (public, *public.made_of)]


def save_start(
    folder: Path,
    weights: Mapping[str, Shaped[Tensor, "..."]],
    public: ImageDataset,
    settings: dict[str, Any],
    earlier: Sequence[Earlier] = (),
    *,
    name: str | None = None,
) -> None:
    """Write a start into its folder: `start.toml` last, without which there is none.

    Args:
        folder: Where.
        weights: Of the network.
        public: What it was trained on.
        settings: What else there is to say of it; `classes`, `facts` and `preconditioning` are needed.
        earlier: What a release cost from which `public` was drawn.
        name: What claims call the images (default: their name), where one claim names them for two networks.

    Raises:
        OSError: It cannot be written; the disk may be full.
    """
    known = {f"{number} {each.name}": known_by(each) for number, each in enumerate((public, *public.made_of))}
    tensors = {f"{_NETWORK}{name}": value for name, value in weights.items()}
    tensors |= {f"{_KNOWN}{number}": torch.from_numpy(ways.copy()) for number, ways in enumerate(known.values())}
    save_weights(folder / WEIGHTS, tensors)
    part = part_of(public, name=name or public.name)
    table = {
        "version": VERSION,
        "public": as_settings([part]),
        "sets": [name.partition(" ")[2] for name in known],
        "sha256": digest(folder / WEIGHTS),
        "network_sha256": weights_digest(weights),
        **settings,
        **({"earlier": [encode(each) for each in earlier]} if earlier else {}),
    }
    write_toml(folder / START, table | {"said_sha256": _digest_of(table)})


def _digest_of(table: dict[str, Any]) -> str:
    """Return the SHA-256 of what `start.toml` says: an edit could leave out what later claims must count."""
    said = {name: value for name, value in table.items() if name != "said_sha256"}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def open_starts(folders: Sequence[str]) -> tuple[PublicStart, ...]:
    """Return the starts in folders.

    Raises:
        InputError: One is none (see `open_start`), or two were made with images of one name, as a claim says it.
    """
    starts = tuple(map(open_start, folders))
    names = [start.part.name for start in starts]
    for folder, name in zip(folders, names, strict=True):
        if names.count(name) > 1:
            raise InputError(f"{folder} is not the only start that was made with {name}: name one of them")
    return starts


def open_start(source: Path | str) -> PublicStart:
    """Return the start in a folder.

    Raises:
        InputError: There is none, it is damaged, or of another version.
    """
    folder = Path(source).expanduser()
    earlier_of([str(source)])  # which says what is wrong, where there is no start
    table = read_toml(folder / START)
    if table.get("version") is not VERSION:
        raise InputError(f"{folder} was made by another version of dpdm: {_REMEDY}")
    with damaged(folder / START, _REMEDY):
        if table["said_sha256"] != _digest_of(table):
            raise InputError(f"{folder / START} was edited: {_REMEDY}")
        (part,), classes, sets = read_parts(table["public"], str(folder / START)), table["classes"], table["sets"]
        if not all(isinstance(names, list) and all(type(name) is str for name in names) for names in (classes, sets)):
            raise InputError(f"{folder / START} holds names of classes or sets that are no list of words: {_REMEDY}")
        earlier = tuple(Earlier(**entry) for entry in table.get("earlier", []))  # of the table that was read last
        kind, shape = str(table["preconditioning"]["kind"]), tuple(table["facts"]["shape"])
        settings = {name: value for name, value in table["preconditioning"].items() if type(value) in (str, float, int)}
        dropout = float(table.get("label_dropout", 0.1))
        codec = str(table.get("codec", ""))
        if part.drawn != bool(earlier):
            raise InputError(f"{folder / START} names images drawn from a release, and not what it cost: {_REMEDY}")
        layout = read_layout(folder / WEIGHTS)
        if digest(folder / WEIGHTS) != table["sha256"]:
            raise InputError(f"{folder / WEIGHTS} is not the file that {START} was written for: {_REMEDY}")
        known = read_weights(folder / WEIGHTS, layout, below=_KNOWN)
        ways = tuple((name, known[str(number)].numpy()) for number, name in enumerate(sets))
        sources = [(source.name, source.images) for source in part.sources if not part.drawn]
        if len(known) != len(ways) or [(name, len(each)) for name, each in ways[1:]] != sources:
            raise InputError(f"{folder / START} names other sets of images than {WEIGHTS} knows: {_REMEDY}")
        if part.images != len(ways[0][1]):
            raise InputError(f"{folder / START} names another number of images than {WEIGHTS} knows: {_REMEDY}")
        if any(each.dtype != np.uint8 or each.ndim != 3 or each.shape[2] != DIGEST for _, each in ways):
            raise InputError(f"{folder / WEIGHTS} knows images by something else than digests: {_REMEDY}")
        weights = read_weights(folder / WEIGHTS, layout, below=_NETWORK)
        if not all(value.isfinite().all() for value in weights.values()):
            raise InputError(f"{folder / WEIGHTS} holds numbers that are not finite: {_REMEDY}")
    del settings["kind"]
    made_for = (tuple(classes), kind, shape, part, ways, earlier, codec, settings, dropout)
    return PublicStart(weights, weights_digest(weights), *made_for)
