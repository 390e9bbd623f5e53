"""Where random bytes come from; golden repositories bring their own so that their bytes repeat."""

from __future__ import annotations

import os
from typing import Protocol

from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey


class Randomness(Protocol):
    """Random bytes, and HPKE's sender, which draws some of its own."""

    def draw(self, count: int) -> bytes:
        """``count`` unpredictable bytes."""
        ...

    def seal_to(self, public_key: bytes, *, plain: bytes, info: bytes) -> bytes:
        """HPKE, base mode, one message: encapsulated key followed by the ciphertext."""
        ...


class SystemRandomness:
    """The operating system's generator."""

    def draw(self, count: int) -> bytes:
        """``count`` unpredictable bytes."""
        return os.urandom(count)

    def seal_to(self, public_key: bytes, *, plain: bytes, info: bytes) -> bytes:
        """HPKE (X25519, HKDF-SHA256, AES-256-GCM), base mode, one message."""
        return HPKE_SUITE.encrypt(plain, X25519PublicKey.from_public_bytes(public_key), info=info)


HPKE_SUITE = hpke.Suite(hpke.KEM.X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)
SYSTEM_RANDOMNESS = SystemRandomness()
