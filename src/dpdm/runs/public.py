"""What a release was made with that is public by declaration: named in its settings and in its claim."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

from dpdm.config import require_public_source
from dpdm.data import ImageDataset, blank_equal, blank_known, read_location
from dpdm.data.public import one_holds
from dpdm.methods import ImageGenerator, Method, PublicPart
from dpdm.methods.values import PublicStart
from dpdm.networks import PipelineFolder
from dpdm.privacy import AnyPlan, Earlier, Plan
from dpdm.privacy.entropy import Entropy
from dpdm.types import InputError, require_at_most, require_name

MOST_PARTS = 16
_SHA256 = re.compile("[0-9a-f]{64}", re.ASCII)


def parts_of(
    images: Sequence[ImageDataset], starts: Sequence[PublicStart], method: Method, generator: ImageGenerator
) -> tuple[PublicPart, ...]:
    """Return a run's public images, those of its starts, its public networks, and what drawing needs beside weights."""
    twice = {start.part.name for start in starts}  # a name is one part's
    names = [f"{public.name} (again)" if public.name in twice else public.name for public in images]
    used = [part_of(public, name=name) for name, public in zip(names, images, strict=True)]
    networks = method.network_parts()
    return (*used, *(start.part for start in starts), *networks, *_beside(networks, generator))


def part_of(images: ImageDataset, *, name: str) -> PublicPart:
    """Return what a claim says of public images, and of each set that they were joined from.

    Of images drawn from a release it says what that release does not protect.
    """
    joined = tuple((each.name, each.digest(), len(each)) for each in images.made_of)
    sources = tuple(PublicPart(*each) for each in joined + images.unprotected)
    return PublicPart(name, images.digest(), len(images), images.drawn, sources)


def as_settings(parts: Sequence[PublicPart]) -> list[dict[str, Any]]:
    """Return the parts as `facts.public` of a release's settings, and `public` of its claim, have them."""
    return [
        {key: as_settings(value) if key == "sources" else value for key, value in part._asdict().items() if value}
        for part in parts
    ]


def read_parts(declared: object, where: str = "config.toml") -> tuple[PublicPart, ...]:
    """Return what `as_settings` made `declared` of.

    Raises:
        InputError: It is something else.
    """
    parts = _read(declared, where)
    if len({part.name for part in parts}) < len(parts):
        raise InputError(f"{where} names public data twice: give each a name of its own")
    return parts


def _read(declared: object, where: str) -> tuple[PublicPart, ...]:
    if not isinstance(declared, list) or len(declared) > MOST_PARTS:
        raise InputError(f"{where} holds something in facts.public that is no list of up to {MOST_PARTS} parts")
    parts = []
    for entry in declared:
        digest = entry.get("sha256") if isinstance(entry, dict) else None
        if not isinstance(digest, str) or not _SHA256.fullmatch(digest):
            raise InputError(f"{where} holds a part in facts.public without its name and sha256")
        require_name(entry.get("name", ""), f"{where}: public data")
        if type(number := entry.get("images", 0)) is not int or not 0 <= number < 2**63:
            raise InputError(f"{where} holds public data of a number of images that is none")
        if type(drawn := entry.get("drawn", False)) is not bool:
            raise InputError(f"{where} holds public data whose `drawn` is neither true nor false")
        sources = _read(entry.get("sources", []), where)
        odd = any(not (source.images or drawn) or source.drawn or source.sources for source in sources)
        if odd or (sources and not drawn and not 0 < number <= sum(source.images for source in sources)):
            raise InputError(f"{where} holds sources of public data that no run joins")
        parts.append(PublicPart(entry["name"], digest, number, drawn, sources))
    return tuple(parts)


def require_needed(parts: Sequence[PublicPart], method: Method, plan: AnyPlan, generator: ImageGenerator) -> None:
    """Raise InputError unless a release names as many public images, and the networks and parts, that it is made with.

    A network's digest is what a run found: whoever verifies need not have its weights.
    """
    images = method.starts_from_images + _searched(plan) + len(method.start_folders)
    counted = all(part.images for part in parts[:images]) and not any(part.images for part in parts[images:])
    networks = len(method.networks)
    named = tuple(part.name for part in parts[images : images + networks]) == method.networks
    network = getattr(method, "network", None)
    if isinstance(network, PipelineFolder) and network.released:  # which says its digests twice
        named = named and [*parts[images:][: len(network.digests)]] == [PublicPart(*each) for each in network.digests]
    rest = tuple(parts[images + networks :])
    if not counted or not named or rest != _beside(parts[images : images + networks], generator):
        raise InputError(f"config.toml names other public data than the method {method.kind} is made with")
    begun_with = (*parts[: method.starts_from_images], *parts[images - len(method.start_folders) : images])
    drawn = any(part.drawn for part in begun_with)
    if any(part.drawn for part in parts if part not in begun_with):
        raise InputError("config.toml calls other images drawn from a release than those that a run begins with")
    if isinstance(plan, Plan) and drawn != bool(plan.earlier):
        raise InputError("config.toml names images drawn from a release, and counts none, or the other way round")


def _beside(networks: Sequence[PublicPart], generator: ImageGenerator) -> tuple[PublicPart, ...]:
    """Return what drawing needs that is none of the public networks which a method names already."""
    return tuple(part for part in generator.parts if part not in networks)


def require_counted(plan: AnyPlan, starts: Sequence[PublicStart], earlier: Sequence[Earlier] = ()) -> None:
    """Raise InputError unless a plan counts what releases cost from which images were drawn.

    Those of its starts were, and those that it begins with, which cost `earlier`.
    """
    of_starts = tuple(each for start in starts for each in start.earlier)
    if not isinstance(plan, Plan) or plan.earlier == (*earlier, *of_starts):
        return
    raise InputError(
        "a run begins with images drawn from a release, and its plan counts other noisy sums than those of that "
        "release: give method.plan(earlier=...) what dpdm.config.earlier_of says of a start, or open_drawn of a run"
    )


def _searched(plan: AnyPlan) -> bool:
    """Whether a plan is that of a search by public images."""
    return isinstance(plan, Plan) and plan.search is not None and plan.search.score_noise_multiplier is None


def claim_of(plan: AnyPlan, parts: Sequence[PublicPart], *, entropy: Entropy) -> dict[str, Any]:
    """Return the claim for machines, with the public parts, which it does not protect."""
    claim = plan.claim(entropy=entropy)
    if parts:
        declared, drawn = (_shown(part for part in parts if part.drawn is drawn) for drawn in (False, True))
        unprotected = f"; it does not protect what was declared public: {declared}" if declared else ""
        counted = f"; it begins with images drawn from a release, which it counts: {drawn}" if drawn else ""
        claim["statement"] = f"{claim['statement']}{unprotected}{counted}"
    return claim | {"public": as_settings(parts)}


def _shown(parts: Iterable[PublicPart]) -> str:
    return ", ".join(f"{part.name!r} ({_number(part)}SHA-256 {part.sha256[:16]}…{_of(part)})" for part in parts)


def _number(part: PublicPart) -> str:
    return f"{part.images:,} image{'s' if part.images > 1 else ''}, " if part.images else ""


def _of(part: PublicPart) -> str:
    said = "which does not protect" if part.drawn else "of"
    return f", {said} {_shown(part.sources)}" if part.sources else ""


def taking_part_of(data: ImageDataset, public: ImageDataset | None, starts: Sequence[PublicStart]) -> ImageDataset:
    """Return the private images, blank where they are among those that a run starts from (see `blank_equal`)."""
    data = data if public is None else blank_equal(data, public)
    for start in starts:
        data = blank_known(data, [digests for _, digests in start.known])
    return data


def require_others(data: ImageDataset, public: ImageDataset) -> None:
    """Raise InputError if private images are declared public where they lie, which needs no look at them."""
    for images in (public, *public.made_of):
        places = [read_location(each.location).source for each in (data, images) if each.location]
        if len(places) == 2 and one_holds(*places):
            raise InputError(
                f"{images.name} names the images that are to be protected, or some of them: what starts from them "
                "would publish them. Name other images as public ones"
            )


def require_public(
    method: Method, plan: AnyPlan, public: object, reference: object, earlier: Sequence[Earlier] = ()
) -> None:
    """Raise InputError unless there are public images exactly where a method starts from some, or a search needs them.

    `reference` has those by which the runs of a search are compared. `earlier` is what a release cost from which
    `public` was drawn: without it, images of a release are refused.
    """
    if not isinstance(reference, ImageDataset | None) or (reference is not None) != _searched(plan):
        raise InputError("reference is for the plan of a search (Tuner) whose score has no noise, and for no other")
    if not isinstance(public, ImageDataset | None):
        raise InputError(f"public must be an ImageDataset (dpdm.open_dataset), not {type(public).__name__}")
    for images in (public, reference):
        if images is not None and (images.claim or (images.drawn and (images is reference or not earlier))):
            raise InputError(f"{images.name} was drawn from a release: its images are not public data")
    if earlier and (public is None or not public.drawn):
        raise InputError("earlier is what images cost that are drawn from a release (open_drawn), and no others")
    require_public_source(method, given=public is not None)
    for images in filter(None, (public, reference)):
        require_named(images, images.name)


def require_named(public: ImageDataset, called: str) -> None:
    """Raise InputError unless a claim can name public images, and all sets that they were joined from."""
    for name in (called, *(each.name for each in public.made_of)):
        require_name(name, "the public data (public.name)")
    if any(each.claim or each.drawn for each in public.made_of):
        raise InputError(f"{called} was joined from images that a release drew: these are not public data")
    require_at_most(MOST_PARTS, **{"public sets that are joined": len(public.made_of)})
