"""The words every part of the package shares: errors, secrets, and the two forms an image takes.

This module imports nothing of the package. Images are `uint8 NHWC` wherever people keep them (files, arrays) and
`float32 NCHW in [-1, 1]` wherever a network sees them. The two functions at the end are the only crossing. They import
torch when they are called: an error needs none.
"""

import errno
import math
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Float, Int
    from numpy.typing import NDArray
    from torch import Tensor

    Images = NDArray[np.uint8]
    """Images as people keep them: (number, height, width, channel), 0..255."""

    Latents = NDArray[np.float16]
    """Numbers of about unit variance as training keeps them: (number, height, width, channel)."""

    Labels = NDArray[np.int64]
    """Class indices: (number,), 0 <= label < num_classes."""
else:

    def __getattr__(name: str) -> object:
        """Make the array types when they are first asked for: an error needs no numpy."""
        levels = {"Images": "uint8", "Latents": "float16", "Labels": "int64"}
        if name not in levels:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        import numpy as np
        from numpy.typing import NDArray

        return NDArray[getattr(np, levels[name])]


T = TypeVar("T")

MOST_CLASSES = 10_000
"""Classes that a data set may have: their names stand in every release."""

_MOST_BYTES = 255  # of a name: as many as a file's name may have
_INVISIBLE = re.compile(  # fillers, joiners and selectors that show nothing, which Unicode calls printable
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u2d7f\u3164\ufe00-\ufe0f\uffa0\ufffc\U0001107f"
    "\U00013440-\U00013442\U00016fe4\U0001bc9d\U0001d159\U000e0100-\U000e01ef]"
)

_OF_MEMORY = re.compile(r"out of memory|can't allocate memory|not enough memory|bad_alloc|alloc_failed", re.IGNORECASE)

RandomBytes = Callable[[int], bytes]
"""A source of random bytes: called with a count, returns that many."""


class InputError(ValueError):
    """A user's mistake, in one line: what was wrong, where, and what to do. The command line exits with code 2.

    Example:
        >>> try:
        ...     open_dataset("mist")
        ... except InputError as error:
        ...     print(str(error).partition(": ")[2])
        did you mean mnist?
    """


def is_of_memory(error: BaseException) -> bool:
    """Tell whether an error says that there is too little memory: Python's, the system's, a decoder's or torch's."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno == errno.ENOMEM
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError | OSError) and _OF_MEMORY.search(str(error)) is not None


def one_line(error: Exception) -> str:
    """Return what an error of somebody else's code says, in one line."""
    said = " ".join(str(error).split())[:200] or "it says no more"
    return said if isinstance(error, InputError) else f"{type(error).__name__}: {said}"


@contextmanager
def refusing(what: str, kind: type[InputError] = InputError) -> Iterator[None]:
    """Turn whatever goes wrong in somebody else's code into one line that begins with `what`.

    Raises:
        InputError: Of this `kind`. One that is raised within stays as it is, and so does an error for lack of memory.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        if is_of_memory(error):
            raise
        raise kind(f"{what}: {one_line(error)}") from error


@contextmanager
def explained(explain: Callable[[Any], str], *kinds: type[Exception]) -> Iterator[None]:
    """Turn errors of these kinds, whoever reads a file having answered it so, into the line that `explain` makes.

    Raises:
        InputError: One that is raised within stays as it is, and so does an error for lack of memory.
    """
    try:
        yield
    except InputError:
        raise
    except kinds as error:
        if is_of_memory(error):
            raise
        raise InputError(explain(error)) from error


class Sensitive(Generic[T]):
    """A value computed from private records that no noise covers, such as a training loss.

    Its `repr` shows nothing, so that it cannot slip into a log. The one way to the value is `reveal`, which writes
    the reason into the list of disclosures of the run that made it.

    Privacy:
        Secret. A revealed value must stay with the data owner: ε does not cover it.

    Example:
        >>> Sensitive(0.31)
        Sensitive(...)
        >>> Sensitive(0.31).reveal(because="its owner looks at it")
        0.31
    """

    __slots__ = ("_disclosures", "_value")

    def __init__(self, value: T, disclosures: list[str] | None = None) -> None:
        self._value = value
        self._disclosures = disclosures

    def reveal(self, *, because: str) -> T:
        """Return the value, noting `because` (once) in the run's list of disclosures."""
        if self._disclosures is not None and because not in self._disclosures:
            self._disclosures.append(because)
        return self._value

    def __repr__(self) -> str:
        return "Sensitive(...)"

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError("a Sensitive value cannot be pickled: reveal it, with a reason, and store that in private/")


class Denoiser(Protocol):
    """D(x; σ, c): what every sampler and every loss works with.

    `x` is (batch, channel, height, width), `sigma` (batch,) > 0, `labels` (batch,) integers; the result is the
    denoised image, of the shape of `x`.
    """

    def __call__(
        self,
        x: "Float[Tensor, 'batch channel height width']",
        sigma: "Float[Tensor, ' batch']",
        labels: "Int[Tensor, ' batch']",
    ) -> "Float[Tensor, 'batch channel height width']":
        """Return the denoised images."""
        ...


def require_positive(**values: float) -> None:
    """Raise InputError naming the first argument that is not a finite number above zero."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, Real) or not 0 < value < math.inf:
            raise InputError(f"{name} must be a number above 0, not {str(value)[:30]}")


def require_counts(**values: int) -> None:
    """Raise InputError naming the first argument that is not a whole number above zero."""
    for name, value in values.items():
        require_positive(**{name: value})
        if not isinstance(value, Integral):
            raise InputError(f"{name} must be a whole number, not {str(value)[:30]}")


def require_counts_or_none(**values: int | None) -> None:
    """Raise InputError naming the first argument that is not a whole number from zero up; None stands for no figure."""
    for name, value in values.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, Integral) or value < 0):
            raise InputError(f"{name} must be a whole number from 0, not {str(value)[:30]}")


def whole_number(name: str, value: float) -> int:
    """Return a count as an `int`, which a claim spells in one way; 8.0 is 8.

    Raises:
        InputError: It is not a whole number above zero.
    """
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 < value < math.inf or int(value) != value:
        raise InputError(f"{name} must be a whole number above 0, not {str(value)[:30]}")
    return int(value)


def require_in_range(**values: float) -> None:
    """Raise InputError naming the first argument that is not from 2^-64 to 2^64: beyond, float64 squares may vanish."""
    for name, value in values.items():
        require_positive(**{name: value})
        if not 2.0**-64 <= value <= 2.0**64:
            raise InputError(f"{name} must be from 2^-64 to 2^64, not {str(value)[:30]}: take 1, say")


def require_at_most(most: int, **values: int) -> None:
    """Raise InputError naming the first argument that is above `most`."""
    for name, value in values.items():
        if not isinstance(value, Real) or value > most:
            raise InputError(f"{name} must be at most {most:,}, not {value}")


def require_within(low: float, high: float, **values: float) -> None:
    """Raise InputError naming the first argument that is not a number from `low` to `high`."""
    for name, value in values.items():
        if not isinstance(value, Real) or not low <= value <= high:
            raise InputError(f"{name} must be from {low:g} to {high:g}, not {value}")


def require_seed(**values: int) -> None:
    """Raise InputError naming the first argument that no generator can be seeded with."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, Integral) or not 0 <= value < 2**63:
            raise InputError(f"{name} must be a whole number from 0 to 2^63 - 1, not {str(value)[:30]}")


def require_name(name: str, what: str) -> None:
    """Raise InputError unless `name` is what a person can read as a whole, in one line: nothing checks what it says.

    Args:
        name: 1 to 255 bytes of visible characters, in Unicode's form NFC.
        what: What it is the name of, for the message.
    """
    shown = isinstance(name, str) and name.isprintable() and name.strip() == name and not _INVISIBLE.search(name)
    if not shown or not 0 < len(name.encode()) <= _MOST_BYTES or unicodedata.normalize("NFC", name) != name:
        said = ascii(name)
        raise InputError(
            f"{what} is called {said if len(said) < 80 else said[:80] + '...'}: give it a name of 1 to {_MOST_BYTES} "
            "bytes of visible characters (Unicode's NFC), without a space at either end"
        )


def require_names_of_classes(names: Sequence[str], what: str) -> None:
    """Raise InputError unless each class has a name (`require_name`), and no two have the same.

    Args:
        names: Those of all classes.
        what: What each is the name of, for the message.
    """
    for name in names:
        require_name(name, what)
    if len(set(names)) < len(names):
        twice = next(name for number, name in enumerate(names) if name in names[:number])
        raise InputError(f"{what} is called {twice!r}, and so is another: give each class a name of its own")


def as_images(what: str, images: "Images") -> "Images":
    """Return images as uint8 (number, height, width, channel); grey ones may come without the last axis.

    Raises:
        InputError: They are something else, or one image alone.
    """
    import numpy as np

    images = np.asanyarray(images)  # which leaves on disk what lies there
    grey, channels = images.ndim == 3 and images.shape[2] > 4, images.ndim == 4 and images.shape[3] in (1, 3, 4)
    if images.dtype != np.uint8 or not (grey or channels):
        found = f"{images.dtype} of shape {images.shape}"
        raise InputError(
            f"{what} images must be uint8 (number, height, width), which are grey, or (number, height, width, channel) "
            f"with 1, 3 or 4 channels, not {found}"
        )
    return images[..., np.newaxis] if grey else images


def images_to_tensor(images: "Images") -> "Float[Tensor, 'batch channel height width']":
    """Turn `uint8 NHWC`, or grey `uint8 NHW`, into `float32 NCHW in [-1, 1]`."""
    return levels_to_tensor(as_images("all", images))


def levels_to_tensor(levels: "Images | Latents") -> "Float[Tensor, 'batch channel height width']":
    """Turn `uint8 NHWC` of any number of channels into `float32 NCHW in [-1, 1]`; numbers of latents stay as they are.

    Latents have levels, too, where they are bounded as images are.
    """
    import torch

    x = torch.from_numpy(levels.transpose(0, 3, 1, 2).copy()).float()
    return x if levels.dtype == "float16" else x.div_(127.5).sub_(1)


def tensor_to_images(x: "Float[Tensor, 'batch channel height width']") -> "Images":
    """Turn `float NCHW` into `uint8 NHWC`: clamped to [-1, 1], rounded to the nearest level."""
    import torch

    levels = x.detach().float().clamp(-1, 1).add(1).mul(127.5).round()
    array: Images = levels.to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy()
    return array
