import contextlib

import pytest

from dpdm.types import InputError


@pytest.fixture
def refused():
    """A block that must end in one clear line which says each of the given words."""

    @contextlib.contextmanager
    def block(*words):
        with pytest.raises(InputError) as caught:
            yield
        line = str(caught.value)
        assert "\n" not in line
        for word in words:
            assert str(word) in line, f"{word!r} is not in {line!r}"

    return block
