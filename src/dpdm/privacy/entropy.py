"""Where the randomness that the claim rests on comes from.

Batch selection and DP noise must be unpredictable to whoever sees the released images. The default takes a fresh key
from the operating system for every draw. So there is no generator state that could be saved, re-used or resumed. The
seeded source exists for tests; a run that used it is stamped not private.
"""

import hashlib
import os
from dataclasses import dataclass, field
from typing import Protocol

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from dpdm.types import RandomBytes


class Entropy(Protocol):
    """A source of independent random byte streams."""

    @property
    def secure(self) -> bool:
        """Whether a privacy claim may rest on this source."""
        ...

    def stream(self, purpose: str, number: int) -> RandomBytes:
        """Return the byte stream for draw `number` of `purpose` ("selection", "noise", "diffusion")."""
        ...


@dataclass(frozen=True)
class OperatingSystemEntropy:
    """AES-256-CTR keystreams, each under a fresh 32-byte key from the operating system.

    Guarantees:
        * No two calls of `stream` share a key, whatever their arguments; seeds of other generators change nothing.
    """

    secure: bool = field(default=True, init=False)

    def stream(self, purpose: str, number: int) -> RandomBytes:
        """Return a fresh keystream; the arguments only name it."""
        return _keystream(os.urandom(32))


@dataclass(frozen=True)
class InsecureSeededEntropy:
    """Keystreams that are pure functions of (seed, purpose, number): for tests, never for a claim.

    Privacy:
        Anyone who knows the seed can subtract the noise. Runs that use this source are stamped NOT PRIVATE.
    """

    seed: int
    secure: bool = field(default=False, init=False)

    def stream(self, purpose: str, number: int) -> RandomBytes:
        """Return the keystream of this (seed, purpose, number); the same arguments give the same bytes."""
        return _keystream(hashlib.sha256(f"{self.seed}/{purpose}/{number}".encode()).digest())


def _keystream(key: bytes) -> RandomBytes:
    encryptor = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()
    return lambda count: encryptor.update(bytes(count))
