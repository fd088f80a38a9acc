"""What is declared of private images, without a look at them: enough to make a public start for them."""

from dpdm.config.settings import Config
from dpdm.data.built_in import classes_of
from dpdm.methods import ImageFacts
from dpdm.types import InputError


def declared_facts(config: Config) -> ImageFacts:
    """Return shape and classes of the images that settings describe.

    Classes are called as those of a built-in data set are, else by their numbers.

    Raises:
        InputError: Something is not declared: it names all that is missing, and how to give it.
    """
    data = config.data
    needed = {"data.size": data.size, "data.channels": data.channels, "data.num_classes": data.num_classes}
    if missing := [key for key, value in needed.items() if value is None]:
        example = {"data.size": 32, "data.channels": 3, "data.num_classes": 10}
        how = " ".join(f"--set {key}={example[key]}" for key in missing)
        raise InputError(
            f"{data.source} is not opened for this, so its facts must be declared: say {' and '.join(missing)}, such "
            f"as {how} (data.num_classes=0: no classes)"
        )
    assert data.size is not None
    assert data.channels is not None
    assert data.num_classes is not None
    return ImageFacts((data.channels, data.size, data.size), classes_of(data.source, data.num_classes))
