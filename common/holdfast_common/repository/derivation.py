"""Keys made from keys, and the keyed hashes that name blocks, frames and lineages."""

from __future__ import annotations

from dataclasses import dataclass, field

from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from holdfast_common.errors import WrongKey
from holdfast_common.repository.layout import BLOCK_DIGEST_BYTES, ID_BYTES, KEY_BYTES
from holdfast_common.repository.randomness import HPKE_SUITE


def derived_key(secret: bytes, *, salt: bytes, info: bytes) -> bytes:
    """32 bytes of HKDF-SHA256."""
    return HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=salt, info=info).derive(secret)


def lineage_tag(id_key: bytes, lineage_id: str) -> bytes:
    """The 16 bytes that stand for a lineage in names and headers; they tell nobody which VM it is."""
    key = derived_key(id_key, salt=b"", info=b"holdfast 1 lineage tag")
    return blake3(lineage_id.encode(), key=key).digest(ID_BYTES)


def lineage_key(meta_key: bytes, tag: bytes) -> bytes:
    """What seals the maps and manifests of one lineage."""
    return derived_key(meta_key, salt=b"", info=b"holdfast 1 lineage key" + tag)


def opened_with_private_key(private_key: bytes, *, sealed: bytes, info: bytes) -> bytes:
    """The inverse of `Randomness.seal_to`. Raises: WrongKey."""
    try:
        return HPKE_SUITE.decrypt(
            sealed, X25519PrivateKey.from_private_bytes(private_key), info=info
        )
    except (InvalidTag, ValueError) as error:
        raise WrongKey("this private key does not open what was sealed") from error


@dataclass(frozen=True, slots=True)
class Hasher:
    """The keyed hashes of one repository: BLAKE3 with keys that are derived from id_key."""

    block_key: bytes = field(repr=False)
    frame_key: bytes = field(repr=False)
    chunk_key: bytes = field(repr=False)
    page_key: bytes = field(repr=False)

    @classmethod
    def from_id_key(cls, id_key: bytes) -> Hasher:
        """All four from the one key that never changes."""
        return cls(
            *(
                derived_key(id_key, salt=b"", info=b"holdfast 1 " + use)
                for use in (b"block digest", b"frame id", b"chunk id", b"page digest")
            )
        )

    def block_digest(self, block: bytes | memoryview) -> bytes:
        """16 bytes for one block of a disk (64 KiB; shorter only at an odd end)."""
        return blake3(block, key=self.block_key).digest(BLOCK_DIGEST_BYTES)

    def frame_id(self, digests: bytes) -> bytes:
        """The id of a disk frame: over its blocks' digests, in order."""
        return blake3(digests, key=self.frame_key).digest()

    def chunk_id(self, plain: bytes | memoryview) -> bytes:
        """The id of a chunk that is not a disk frame: over its plain bytes."""
        return blake3(plain, key=self.chunk_key).digest()

    def page_digest(self, page: bytes | memoryview) -> bytes:
        """What a reference to a map page holds."""
        return blake3(page, key=self.page_key).digest()
