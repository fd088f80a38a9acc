"""The import hook of the tests: calls of dpdm are checked for the shapes that hints state, by beartype."""

from dataclasses import is_dataclass
from functools import reduce
from inspect import isclass
from operator import or_
from types import UnionType
from typing import Any, Union, get_args, get_origin

import jaxtyping
from beartype import beartype

_jaxtyped = jaxtyping.jaxtyped


def install():
    """Check the shapes of all that is imported of dpdm from here on.

    The hook puts `jaxtyping.jaxtyped` around every function, which costs time at each call. Functions that state no
    shape stay as they are. So do those inside functions, which would be compiled anew at each call.
    """
    jaxtyping.jaxtyped = _where_shapes_are_stated
    jaxtyping.install_import_hook("dpdm", "shapes.checked")


def _where_shapes_are_stated(*, typechecker):
    def decorate(what):
        stated = what.__init__ if is_dataclass(what) else what
        if "<locals>" in what.__qualname__ or not _shapes(getattr(stated, "__annotations__", {})):
            return what
        return _jaxtyped(what, typechecker=typechecker)

    return decorate


def checked(function):
    """Return the function with shapes checked, its own and those in unions and pairs, and nothing else.

    mypy checks all other hints, and what a person gets wrong is for an `InputError`, which no check may precede. In
    lists beartype looks at one member by chance, with the generator of Python from which the package refuses draws.
    """
    shapes = _shapes(function.__annotations__)
    if not shapes:
        return function
    function.__annotations__ = shapes
    return beartype(function)


def _shapes(hints):
    """Return the hints that state a shape."""
    return {name: shape for name, hint in hints.items() if (shape := _shape(hint)) is not Any}


def _shape(hint):
    """Return the hint with `Any` for all that states no shape."""
    if isclass(hint) and issubclass(hint, jaxtyping.AbstractArray):
        return hint
    parts = get_args(hint)
    shapes = tuple(map(_shape, parts))
    if all(shape is Any for shape in shapes) or ... in parts:
        return Any
    if get_origin(hint) is tuple:
        return tuple[shapes]
    if get_origin(hint) in (Union, UnionType):
        return reduce(or_, (part if shape is Any else shape for part, shape in zip(parts, shapes, strict=True)))
    return Any
