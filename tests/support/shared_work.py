"""Thousands of repositories that are nearly equal share pure work: the same signature is verified once.

Only what was right is remembered, by all bytes that it depends on; what is wrong is found out every time.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

from blake3 import blake3
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from holdfast_common.repository import key_changes, key_generation, key_sets, keys, sealed_object

_REMEMBERED = 20_000
_right: set[bytes] = set()  # digests of key, signature and message: messages may be megabytes


class _PublicKey:
    """Stands for `Ed25519PublicKey` where only `verify` is used."""

    def __init__(self, public: bytes) -> None:
        self._public = public

    @classmethod
    def from_public_bytes(cls, public: bytes) -> _PublicKey:
        return cls(public)

    def verify(self, signature: bytes, message: bytes) -> None:
        _verify(self._public, bytes(signature), bytes(message))


class _PrivateKey:
    """Stands for `Ed25519PrivateKey` where one is made from bytes."""

    from_private_bytes = staticmethod(lru_cache(_REMEMBERED)(Ed25519PrivateKey.from_private_bytes))


def _verify(public: bytes, signature: bytes, message: bytes) -> None:
    digest = blake3(public).update(signature).update(message).digest()
    if digest in _right:
        return
    Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    if len(_right) >= _REMEMBERED:
        _right.clear()
    _right.add(digest)


@contextmanager
def shared_work() -> Iterator[None]:
    """Within the block signatures that were once right are not computed again."""
    modules = (sealed_object, key_sets, key_generation, key_changes, keys)
    replaced = {"Ed25519PublicKey": _PublicKey, "Ed25519PrivateKey": _PrivateKey}
    saved = [
        (module, name, getattr(module, name))
        for module in modules
        for name in replaced
        if hasattr(module, name)
    ]
    for module, name, _ in saved:
        setattr(module, name, replaced[name])
    try:
        yield
    finally:
        for module, name, original in saved:
            setattr(module, name, original)
