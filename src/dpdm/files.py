"""How files and folders are written: whole or not at all; and how one that is damaged is refused."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import safetensors
import tomli_w

from dpdm.types import InputError, explained, is_of_memory

_MOST_DIGITS = 19  # of an integer


def write_atomically(path: Path, write: Callable[[Path], object], *, before: Path | None = None) -> None:
    """Call `write` with a temporary path beside `path`, then put it in place; a failure leaves the old file whole.

    Args:
        path: The file.
        write: What writes it.
        before: What the old file is called from then on; it is renamed, since not every file system has links.

    Raises:
        OSError: The file cannot be written; the disk may be full.
    """
    temporary = _unfinished(path)
    try:
        try:
            write(temporary)
        except safetensors.SafetensorError as error:  # which is how its writer reports a full disk
            raise OSError(str(error)) from error
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        if before is not None and path.exists():
            path.replace(before)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def is_first_of_its_folders(path: Path) -> bool:
    """Tell whether nothing is in a file's folder, and in the folder around that, but what writing this file left.

    So it is where whatever writes this file first was killed before the file was there.
    """
    folder, around = path.parent, path.parent.parent
    beside = [each for each in around.iterdir() if each != folder] if around.exists() else []
    within = [each for each in folder.iterdir() if each != _unfinished(path)] if folder.exists() else []
    return not beside and not within


def _unfinished(path: Path) -> Path:
    return path.with_name(f".{path.name}.partial")


def write_folder_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write` with a new folder beside `path`, then put it in place; a failure leaves nothing.

    Args:
        path: The folder; it may exist if it is empty. Missing folders above it are made.
        write: What fills it.

    Raises:
        OSError: The folder cannot be written; the disk may be full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{path.name[:200]}.", dir=path.parent) as temporary:
        whole = Path(temporary) / "whole"
        whole.mkdir()
        write(whole)
        if path.exists():
            path.rmdir()
        whole.rename(path)


def damaged(path: object, remedy: str, *, what: str = "cannot be read") -> AbstractContextManager[None]:
    """Turn whatever goes wrong while a file is read into one line: the file, what is wrong with it, and what to do.

    Raises:
        InputError: One that is raised within stays as it is, and so does an error for lack of memory.
    """

    def why(error: Exception) -> str:
        return f"{path} {what} ({getattr(error, 'strerror', None) or type(error).__name__}): {remedy}"

    return explained(why, Exception)  # decoders answer damaged bytes with nearly any exception


@contextmanager
def held(path: Path, *, otherwise: str) -> Iterator[None]:
    """Hold the lock file `path`, made if it is not there, against all other processes; a crash lets go of it.

    Raises:
        InputError: Another one holds it (`otherwise` says so), or the file system has no locks.
    """
    from filelock import lock_descriptor  # which warns where there are no locks, of no concern to who only reads

    with path.open("a") as file:
        try:
            alone = lock_descriptor(file.fileno(), blocking=False)
        except OSError as error:
            raise InputError(f"{path} cannot be locked ({error.strerror}): choose a folder elsewhere") from None
        if not alone:
            raise InputError(otherwise)
        yield


def digest(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, content: object) -> None:
    """Write `content` as indented JSON, atomically."""
    text = json_text(content)
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def json_text(content: object) -> str:
    """Return `content` as `write_json` writes it."""
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def write_toml(path: Path, content: dict[str, Any]) -> None:
    """Write `content` as TOML, atomically."""
    write_atomically(path, lambda temporary: temporary.write_bytes(tomli_w.dumps(content).encode()))


def read_at_most(path: Path, most: int) -> bytes:
    """Return what a file holds; of a stranger's files, too, which may be endless, or no files at all.

    Raises:
        InputError: It is no regular file, or holds more than `most` bytes.
    """
    if not path.is_file():  # whoever opens a pipe may wait for ever
        raise InputError(f"{path} is missing, or not a file of its own")
    with path.open("rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise InputError(f"{path} is larger than {most:,} bytes, which no run writes there")
    return content


def read_json(path: Path, *, most: int | None = None) -> dict[str, object]:
    """Return the JSON object in `path`, of `most` bytes if given, or raise InputError naming the file."""
    try:
        text = path.read_bytes() if most is None else read_at_most(path, most)
        content = json.loads(text.decode(), object_pairs_hook=_once_each, parse_int=_short)
    except InputError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        if is_of_memory(error):
            raise
        raise InputError(f"{path} cannot be read as JSON ({type(error).__name__}): is this the right folder?") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} holds no JSON object: is this the right folder?")
    return content


def _short(digits: str) -> int:
    """Return an integer, unless it is longer than 64 bits can be: no number of a file of ours is."""
    if len(digits.removeprefix("-")) > _MOST_DIGITS:
        raise ValueError("an integer without end")
    return int(digits)


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object's pairs, none of which may be there twice: a person would read the first, a program the last."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key occurs twice")
    return found
