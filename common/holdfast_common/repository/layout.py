"""The numbers and names of format 1. Everything else in this folder takes them from here."""

from __future__ import annotations

import re
from enum import IntEnum
from typing import Final

from holdfast_common.errors import FormatError
from holdfast_common.units import KIB, MIB

FORMAT_VERSION: Final = 1
ALGORITHM: Final = 1  # AES-256-GCM, HKDF-SHA256, BLAKE3, X25519, Ed25519

BLOCK_BYTES: Final = 64 * KIB  # the smallest changed unit, and what one digest covers
FRAME_BYTES: Final = MIB  # an aligned window of a disk; what one frame covers at most
LEAF_BYTES: Final = 16 * MIB  # what one leaf page of a disk's map covers
MAP_FANOUT: Final = 256
BLOCKS_PER_FRAME: Final = FRAME_BYTES // BLOCK_BYTES
BLOCKS_PER_LEAF: Final = LEAF_BYTES // BLOCK_BYTES
FRAMES_PER_LEAF: Final = LEAF_BYTES // FRAME_BYTES
CAPACITY_BYTES_MAX: Final = 1 << 52  # 4 PiB: keeps a map at four levels

PACK_BYTES: Final = 64 * MIB  # a pack is closed before it would pass this
PACK_FILE_BYTES_MAX: Final = 256 * MIB  # readers refuse larger ones
DEDUP_BLOCKS_MIN: Final = 4  # smaller frames are never looked up: they hardly ever repeat
METADATA_BYTES_MAX: Final = 1 << 32  # readers refuse larger sealed objects

ID_BYTES: Final = 16  # repository, domain, origin, object, lineage tag
KEY_BYTES: Final = 32
CHUNK_ID_BYTES: Final = 32
BLOCK_DIGEST_BYTES: Final = 16
WRAPPED_KEY_BYTES: Final = 80  # HPKE: 32 encapsulated key, 32 key, 16 tag
TAG_BYTES: Final = 16
NO_LINEAGE: Final = bytes(ID_BYTES)

# What reading a document of any shape may raise: a listed writer can sign whatever he likes.
UNREADABLE: Final = (
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    OverflowError,
    RecursionError,
)


class ObjectKind(IntEnum):
    """What a sealed object is; bound into its key and its associated data."""

    WRITERS = 1
    INDEX = 2
    MAP = 3
    MANIFEST = 4
    PROOF = 5
    FENCE = 6
    PACK_FOOTER = 7
    LEASE = 8
    FILE_TREE = 9
    HOLD = 10
    CONTROLLER_COPY = 11


LINEAGE_KINDS: Final = frozenset({ObjectKind.MAP, ObjectKind.MANIFEST, ObjectKind.FILE_TREE})
SIGNED_KINDS: Final = frozenset(
    {
        ObjectKind.WRITERS,
        ObjectKind.INDEX,
        ObjectKind.MANIFEST,
        ObjectKind.PROOF,
        ObjectKind.FENCE,
        ObjectKind.LEASE,
        ObjectKind.HOLD,
        ObjectKind.CONTROLLER_COPY,
    }
)


class BlobKind(IntEnum):
    """What a blob in a pack holds; bound into its associated data."""

    DISK_FRAME = 1
    FILE_CHUNK = 2
    OPAQUE = 3


_JOB_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")
_MANIFEST_NAME = re.compile(r"points/([0-9a-f]{32})/[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_HEX32: Final = "[0-9a-f]{32}"
_NAMES: Final = {
    "keys": re.compile(r"keys/[0-9]{10}(?:-copy)?"),
    "writers": re.compile(r"writers/[0-9]{10}(?:-copy)?"),
    "packs": re.compile(r"packs/([0-9a-f]{2})/\1[0-9a-f]{62}"),
    "index": re.compile(f"index/{_HEX32}"),
    "maps": re.compile(f"maps/{_HEX32}/{_HEX32}"),
    "points": _MANIFEST_NAME,
    "fences": re.compile(r"fences/[0-9]{10}"),
    "leases": re.compile(f"leases/{_HEX32}/[0-9]{{6}}"),
    "proofs": re.compile(f"proofs/{_HEX32}"),
    "holds": re.compile(f"holds/{_HEX32}/[A-Za-z0-9][A-Za-z0-9_-]{{0,63}}"),
    "controller": re.compile(r"controller/[0-9]{10}/[0-9]{10}"),
    "reserve": re.compile(r"reserve/room(?:-[0-9]{1,3})?"),
}
KINDS_OF_NAMES: Final = tuple(_NAMES)  # the folders in which every object's name tells what it is


def is_object_name(name: str) -> bool:
    """Whether an object of format 1 can have that name. What lies under another one in these folders is a stray."""
    pattern = _NAMES.get(name.partition("/")[0])
    return pattern is not None and pattern.fullmatch(name) is not None


def is_stray_name(name: str) -> bool:
    """Whether that is a name in a folder of objects, and no object can have it."""
    return name.partition("/")[0] in _NAMES and not is_object_name(name)


def checked_job_name(job_id: str) -> str:
    """The job id itself when it can stand in an object's name. Raises: FormatError."""
    if not _JOB_NAME.fullmatch(job_id):
        raise FormatError("not a job id that can name an object", job_id=job_id[:80])
    return job_id


def keys_name(generation: int) -> str:
    """The object of one key generation."""
    return f"keys/{generation:010d}"


def writers_name(number: int) -> str:
    """The object of one list of writers."""
    return f"writers/{number:010d}"


def copy_name(name: str) -> str:
    """The second copy of an object without which nothing can be read: keys and lists of writers."""
    return f"{name}-copy"


def numbered(name: str) -> int:
    """The number in the name of a key generation, list of writers or fence; 0 when there is none."""
    number = name.rpartition("/")[2].removesuffix("-copy")
    return int(number) if number.isdecimal() and len(number) == 10 else 0


def pack_name(digest: bytes) -> str:
    """The object of a pack, by the BLAKE3 of its bytes."""
    text = digest.hex()
    return f"packs/{text[:2]}/{text}"


def index_name(object_id: bytes) -> str:
    """The object of an index segment."""
    return f"index/{object_id.hex()}"


def map_name(lineage_tag: bytes, object_id: bytes) -> str:
    """The object that holds the map pages of one attempt."""
    return f"maps/{lineage_tag.hex()}/{object_id.hex()}"


def manifest_name(lineage_tag: bytes, job_id: str) -> str:
    """The object of a restore point: one job can make only one."""
    return f"points/{lineage_tag.hex()}/{checked_job_name(job_id)}"


def manifest_tag(name: str) -> bytes | None:
    """The lineage tag in a manifest's name; None: no manifest has such a name, whatever lies there."""
    found = _MANIFEST_NAME.fullmatch(name)
    return bytes.fromhex(found[1]) if found else None


def fence_name(epoch: int) -> str:
    """The object that closes a writer epoch."""
    return f"fences/{epoch:010d}"


def lease_name(lease_id: bytes, sequence: int) -> str:
    """The object of one renewal of a writer lease."""
    return f"leases/{lease_id.hex()}/{sequence:06d}"


def hold_name(point_name: str) -> str:
    """The object that holds a point: the point's own name below another folder."""
    return f"holds/{point_name.removeprefix('points/')}"


def proof_name(object_id: bytes) -> str:
    """The object of a verifier's proof."""
    return f"proofs/{object_id.hex()}"


def controller_copy_name(epoch: int, number: int) -> str:
    """The object of one copy of a controller's database; a controller's life has one epoch."""
    return f"controller/{epoch:010d}/{number:010d}"


def aside_name(name: str) -> str:
    """Where a repair keeps a damaged object that it took out; readers do not look there."""
    return f"aside/{name}"
