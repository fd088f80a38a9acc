"""What is declared of private images, without a look at them: enough to make a public start for them."""

from pathlib import Path

from dpdm.config.settings import Config, Data
from dpdm.data.built_in import classes_of
from dpdm.data.location import found, split_of
from dpdm.ledger import Ledger
from dpdm.methods import ImageFacts
from dpdm.types import InputError


def declared_facts(config: Config, *, ledger: Ledger | None = None, also: str = "") -> ImageFacts:
    """Return shape and classes of the images that settings describe, or that were declared with their total.

    Classes are called as those of a built-in data set are, else by their numbers; those in a ledger by their names.

    Args:
        config: The settings. What they say of the images goes before what a ledger says.
        ledger: Where the data set may be registered, by `data.name`, or by the name of its folder or file.
        also: A further option that the caller lacks, as its user would write it: the error asks for it, too.

    Raises:
        InputError: Something is not declared: it names all that is missing, and how to give it.
    """
    data, known = config.data, _registered(config.data, ledger)
    needed = {"data.size": data.size, "data.channels": data.channels, "data.num_classes": data.num_classes}
    missing = [key for key, value in needed.items() if value is None]
    if missing and known is None:
        example = {"data.size": 32, "data.channels": 3, "data.num_classes": 10}
        how = " ".join(f"--set {key}={example[key]}" for key in missing)
        raise InputError(
            f"{data.source} is not opened for this, so declare {', '.join(missing)}, such as {how} {also}".rstrip()
            + f" (data.num_classes=0: no classes). `dpdm check {data.source}` shows them; `dpdm ledger register` keeps "
            "them"
        )
    channels, *sides = (None, None, None) if known is None else known.shape
    height, width = sides if data.size is None else (data.size, data.size)
    if known is not None and data.num_classes in (None, known.num_classes):
        names = known.class_names
    else:
        names = classes_of(data.source, data.num_classes or 0)
    return ImageFacts((data.channels or channels, height, width), names)  # type: ignore[arg-type]


def _registered(data: Data, ledger: Ledger | None) -> ImageFacts | None:
    """Return what a ledger says of these images, if they were declared there."""
    if ledger is None:
        return None
    place, split = split_of(data.source)
    name = data.name or found(Path(place).expanduser()).resolve().name + ("" if split == "train" else f":{split}")
    account = ledger.accounts().get(name)
    return (
        None if account is None or account.facts is None else ImageFacts(account.facts.shape, account.facts.class_names)
    )
