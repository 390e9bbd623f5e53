"""Is every pack what its name says? Needs no key, and only leave to read: for any machine that sees the files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from blake3 import blake3

from holdfast_common.errors import FormatError, IntegrityError, RepositoryFailed
from holdfast_common.repository.layout import pack_name
from holdfast_common.repository.loss import DamagedObject
from holdfast_common.repository.object_store import ObjectStore, get_range
from holdfast_common.repository.pack import read_plain_footer
from holdfast_common.repository.reference_check import stored_packs
from holdfast_common.units import MIB

_READ_BYTES: Final = 4 * MIB
_DAMAGE: Final = (IntegrityError, FormatError, RepositoryFailed)


def scrub(store: ObjectStore) -> list[DamagedObject]:
    """Compare every pack with its name, which is its digest; tell which blobs are hit. Needs no key.

    Raises: RepositoryFailed when packs cannot be listed.
    """
    return [found for _, found in scrub_packs(store, stored_packs(store).items()) if found]


def scrub_packs(
    store: ObjectStore, packs: Iterable[tuple[bytes, int]]
) -> Iterator[tuple[bytes, DamagedObject | None]]:
    """The same of some packs, digests with lengths, one by one; None: the pack is what its name says."""
    for digest, length in packs:
        reason = _scrubbed(store, digest, length)
        yield digest, DamagedObject(name=pack_name(digest), reason=reason) if reason else None


def _scrubbed(store: ObjectStore, digest: bytes, length: int) -> str:
    """Why a pack is damaged; empty when it is not."""
    name = pack_name(digest)
    try:
        if file_digest(store, name, length) == digest:
            return ""
        footer, _, _ = read_plain_footer(store, digest, length=length)
        hit = [
            number
            for number, blob in enumerate(footer.blobs)
            if blake3(
                get_range(store, name, offset=blob.offset, length=min(blob.stored_length, length))
            ).digest()
            != blob.ciphertext_digest
        ]
    except _DAMAGE as error:
        return str(error)
    return f"the pack's bytes do not match its name; blobs hit: {_shortened(hit)}"


def _shortened(numbers: Iterable[int]) -> str:
    listed = list(numbers)
    text = ", ".join(str(number) for number in listed[:20])
    return f"{text} and {len(listed) - 20} more" if len(listed) > 20 else text or "none"


def file_digest(store: ObjectStore, name: str, length: int) -> bytes:
    """BLAKE3-256 of an object's first ``length`` bytes. Raises: as `ObjectStore.read_into`."""
    digest = blake3()
    buffer = memoryview(bytearray(min(length, _READ_BYTES)))
    for offset in range(0, length, _READ_BYTES):
        piece = buffer[: min(_READ_BYTES, length - offset)]
        store.read_into(name, offset, piece)
        digest.update(piece)
    return digest.digest()
