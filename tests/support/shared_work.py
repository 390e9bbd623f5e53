"""Thousands of repositories that are nearly equal share pure work: what was right once is not computed again.

Signatures, derived keys, unsealed keys, opened objects, decoded indexes, manifests and lists of writers: each is remembered by all bytes
that it depends on; what is wrong is found out every time.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Final

from blake3 import blake3
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from holdfast_common.repository import (
    derivation,
    index,
    key_changes,
    key_generation,
    key_sets,
    keys,
    sealed_object,
    writers,
)
from holdfast_common.repository.index import IndexSegment
from holdfast_common.repository.layout import ObjectKind
from holdfast_common.repository.manifest import Manifest
from holdfast_common.repository.sealed_object import Expected, ObjectHeader, OpenedObject

_REMEMBERED: Final = 20_000
_OBJECTS_REMEMBERED: Final = 2_000
_OBJECT_BYTES_MAX: Final = 16 << 10  # of what is remembered with all its bytes
_PACKAGE: Final = "holdfast_common.repository."
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


_derived_key = lru_cache(_REMEMBERED)(derivation.derived_key)
_opened_with_private_key = lru_cache(_REMEMBERED)(derivation.opened_with_private_key)
_decoded = lru_cache(_OBJECTS_REMEMBERED)(index.decoded_segment)
_decoded_list = lru_cache(_OBJECTS_REMEMBERED)(writers.decoded_list)
_decoded_manifest = lru_cache(_OBJECTS_REMEMBERED)(Manifest.decode)
_usual_decoded_segment = index.decoded_segment
_usual_opened = sealed_object.opened


def _decoded_segment(body: bytes | memoryview) -> IndexSegment:
    if len(body) > _OBJECT_BYTES_MAX:
        return _usual_decoded_segment(body)
    return _decoded(bytes(body))


def _opened(
    data: bytes | memoryview, *, expected: Expected, class_key: Callable[[ObjectKind, int], bytes]
) -> OpenedObject:
    if len(data) > _OBJECT_BYTES_MAX:
        return _usual_opened(data, expected=expected, class_key=class_key)
    header = ObjectHeader.decode(memoryview(data))
    expected.check(header)
    return _opened_by_key(bytes(data), expected, class_key(header.kind, header.key_epoch))


@lru_cache(_OBJECTS_REMEMBERED)
def _opened_by_key(data: bytes, expected: Expected, key: bytes) -> OpenedObject:
    return _usual_opened(data, expected=expected, class_key=lambda *_: key)


_KEY_CLASSES: Final[tuple[tuple[str, object], ...]] = (
    ("Ed25519PublicKey", _PublicKey),
    ("Ed25519PrivateKey", _PrivateKey),
)
_FUNCTIONS: Final[tuple[tuple[str, object, object], ...]] = (
    ("derived_key", derivation.derived_key, _derived_key),
    ("opened_with_private_key", derivation.opened_with_private_key, _opened_with_private_key),
    ("decoded_segment", _usual_decoded_segment, _decoded_segment),
    ("opened", _usual_opened, _opened),
    ("decoded_list", writers.decoded_list, _decoded_list),
)


@contextmanager
def shared_work() -> Iterator[None]:
    """Within the block what was once right is not computed again."""
    replaced = [
        (module, name, substitute)
        for module in (sealed_object, key_sets, key_generation, key_changes, keys)
        for name, substitute in _KEY_CLASSES
        if hasattr(module, name)
    ]
    replaced += [
        (module, name, substitute)
        for path, module in list(sys.modules.items())
        if path.startswith(_PACKAGE)
        for name, original, substitute in _FUNCTIONS
        if getattr(module, name, None) is original
    ]
    saved = [(module, name, getattr(module, name)) for module, name, _ in replaced]
    usual_decode = vars(Manifest)["decode"]
    Manifest.decode = staticmethod(_decoded_manifest)  # type: ignore[method-assign]  # for the block only
    for module, name, substitute in replaced:
        setattr(module, name, substitute)
    try:
        yield
    finally:
        Manifest.decode = usual_decode  # type: ignore[method-assign]  # as it was
        for module, name, original in saved:
            setattr(module, name, original)
