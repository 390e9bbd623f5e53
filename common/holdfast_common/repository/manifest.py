"""A restore point as an object: what was saved, of which VM, and the roots of its disks' maps.

JSON, sealed with the lineage's key, signed by the writer, and followed by the controller's commit
grant. Unknown fields are ignored, so fields can be added without a new format.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Final

from holdfast_common.errors import FormatError, IntegrityError
from holdfast_common.identity import PointId
from holdfast_common.repository.disk_map import PageReference
from holdfast_common.repository.layout import CAPACITY_BYTES_MAX, CHUNK_ID_BYTES, UNREADABLE

MANIFEST_BYTES_MAX: Final = 64 << 20
_JSON_TYPES: Final = {
    "str": str,
    "int": int,
    "Mapping[str, str]": dict,
    "Mapping[str, Json]": dict,
}
Json = str | int | float | bool | None | list["Json"] | dict[str, "Json"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskHeader:
    """A disk as vSphere describes it in the snapshot. Identity: device key and uuid; the rest is labels."""

    device_key: int
    uuid: str
    capacity_bytes: int
    sector_bytes: int = 512
    label: str = ""
    storage_policy: str = ""
    change_id: str = ""  # of the snapshot; the base of the next incremental
    chain: tuple[str, ...] = ()  # backing files, base first
    details: Mapping[str, Json] = field(
        default_factory=dict
    )  # controller, unit, mode, provisioning, …

    def __post_init__(self) -> None:
        if not 0 < self.capacity_bytes <= CAPACITY_BYTES_MAX or self.capacity_bytes % 512:
            raise FormatError("not a disk's capacity", capacity_bytes=self.capacity_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskSummary:
    """What became of one disk in this point; all counts in bytes."""

    header: DiskHeader
    root: PageReference | None  # None: the whole disk is zero
    allocated_bytes: int  # mapped by this point, in whole blocks
    received_bytes: int = 0  # given to `write`
    zero_bytes: int = 0  # of these found to be zero
    unchanged_bytes: int = 0  # of these equal to the previous point (compare scan)
    known_bytes: int = 0  # of these found in the repository already
    new_bytes: int = 0  # of these compressed and stored
    stored_bytes: int = 0  # what they take in packs
    map_pages: Mapping[bytes, int] | None = None  # map object -> pages of this disk in it


@dataclass(frozen=True, slots=True, kw_only=True)
class UsedObjects:
    """All metadata that a point stands on, whoever wrote it: what must be there for it to be readable.

    ``indexes`` may hold more than is needed; None: not known, some data is in no index.
    """

    maps: Mapping[bytes, int]  # map object -> its length
    indexes: frozenset[bytes] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PointDisk:
    """A disk of a committed point: what an incremental builds on and what a restore reads."""

    point_id: PointId
    lineage_id: str
    summary: DiskSummary
    used: UsedObjects | None = None  # by the whole point

    @property
    def header(self) -> DiskHeader:
        """The disk as it was."""
        return self.summary.header


@dataclass(frozen=True, slots=True, kw_only=True)
class BlobRecord:
    """A typed opaque blob of the point: .vmx, OVF, NVRAM."""

    kind: str
    length: int
    chunks: tuple[tuple[bytes, int], ...]  # chunk id, plain length


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectReference:
    """An object that this attempt wrote."""

    object_id: bytes
    digest: bytes
    length: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ManifestFacts:
    """What the controller knows of the run; texts are stored as they are."""

    run_id: str = ""
    order: int = 0  # the controller's own counter of points; clocks are advisory
    vm: Mapping[str, str] = field(
        default_factory=dict
    )  # vcenter, instance_uuid, bios_uuid, name, moref, …
    snapshot_at: str = ""  # UTC, as `clock.utc_text`
    method: str = "image"
    transport: str = ""
    level_asked: str = "full"
    level_done: str = "full"
    level_reason: str = ""
    consistency_asked: str = "crash"
    consistency_reached: str = "crash"
    evidence: str = ""
    group_id: str = ""
    previous_point: str = ""
    details: Mapping[str, Json] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """A restore point's whole content."""

    point_id: PointId
    job_id: str
    attempt: int
    lineage_id: str
    agent_id: str
    created_at: str
    writer_epoch: int
    facts: ManifestFacts
    disks: tuple[DiskSummary, ...]
    blobs: tuple[BlobRecord, ...]
    packs: tuple[bytes, ...]  # digests of the packs that this attempt wrote
    indexes: tuple[ObjectReference, ...]
    maps: tuple[ObjectReference, ...]
    used: UsedObjects | None = None  # None: not known

    def encode(self) -> bytes:
        """The body that is sealed: JSON with sorted keys."""
        document = {
            "point_id": self.point_id,
            "job_id": self.job_id,
            "attempt": self.attempt,
            "lineage_id": self.lineage_id,
            "agent_id": self.agent_id,
            "created_at": self.created_at,
            "writer_epoch": self.writer_epoch,
            "facts": asdict(self.facts),
            "disks": [_disk_to_json(disk) for disk in self.disks],
            "blobs": [
                {
                    "kind": blob.kind,
                    "length": blob.length,
                    "chunks": [[chunk_id.hex(), length] for chunk_id, length in blob.chunks],
                }
                for blob in self.blobs
            ],
            "packs": [digest.hex() for digest in self.packs],
            "indexes": [_object_to_json(item) for item in self.indexes],
            "maps": [_object_to_json(item) for item in self.maps],
            "used": _used_to_json(self.used),
        }
        return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()

    @classmethod
    def decode(cls, body: bytes) -> Manifest:
        """The inverse of `encode`. Raises: FormatError."""
        try:
            document = json.loads(body)
            _check_named(document)
            return cls(
                point_id=PointId(str(document["point_id"])),
                job_id=str(document["job_id"]),
                attempt=int(document["attempt"]),
                lineage_id=str(document["lineage_id"]),
                agent_id=str(document["agent_id"]),
                created_at=str(document["created_at"]),
                writer_epoch=int(document["writer_epoch"]),
                facts=_known(ManifestFacts, document["facts"]),
                disks=tuple(_disk_from_json(disk) for disk in document["disks"]),
                blobs=tuple(_blob_from_json(blob) for blob in document["blobs"]),
                packs=tuple(bytes.fromhex(digest) for digest in document["packs"]),
                indexes=tuple(_object_from_json(item) for item in document["indexes"]),
                maps=tuple(_object_from_json(item) for item in document["maps"]),
                used=_used_from_json(document.get("used")),
            )
        except UNREADABLE as error:
            raise IntegrityError("a manifest cannot be read") from error


def _check_named(document: Mapping[str, Any]) -> None:
    """What names and numbers are made from. Raises: ValueError, TypeError, KeyError."""
    for name in ("point_id", "job_id", "lineage_id"):
        str(document[name]).encode()
    if not 0 <= int(document["attempt"]) < 1 << 32:
        raise ValueError("an attempt is counted by 32 bits")


def _disk_to_json(disk: DiskSummary) -> dict[str, Any]:  # JSON has no better type
    document = asdict(replace(disk, map_pages=None))
    root = disk.root
    document["header"]["chain"] = list(disk.header.chain)
    document["root"] = None
    if root is not None:
        document["root"] = {
            "object_id": root.object_id.hex(),
            "offset": root.offset,
            "length": root.length,
            "blocks": root.blocks,
            "digest": root.digest.hex(),
        }
    document["map_pages"] = _counts_to_json(disk.map_pages)
    return document


def _disk_from_json(document: dict[str, Any]) -> DiskSummary:
    header = dict(document["header"])
    header["chain"] = tuple(str(item) for item in header.get("chain", ()))
    root = document["root"]
    counts = {
        item.name: int(document.get(item.name, 0))
        for item in fields(DiskSummary)
        if item.name.endswith("_bytes")
    }
    return DiskSummary(
        header=_known(DiskHeader, header),
        root=None
        if root is None
        else PageReference(
            object_id=bytes.fromhex(root["object_id"]),
            offset=int(root["offset"]),
            length=int(root["length"]),
            blocks=int(root["blocks"]),
            digest=bytes.fromhex(root["digest"]),
        ),
        map_pages=_counts_from_json(document.get("map_pages")),
        **counts,
    )


def _used_to_json(used: UsedObjects | None) -> dict[str, Any] | None:
    if used is None:
        return None
    indexes = None if used.indexes is None else sorted(item.hex() for item in used.indexes)
    return {"maps": _counts_to_json(used.maps), "indexes": indexes}


def _used_from_json(document: dict[str, Any] | None) -> UsedObjects | None:
    if document is None:
        return None
    indexes = document["indexes"]
    return UsedObjects(
        maps=_counts_from_json(document["maps"]) or {},
        indexes=None if indexes is None else frozenset(bytes.fromhex(item) for item in indexes),
    )


def _counts_to_json(counts: Mapping[bytes, int] | None) -> dict[str, int] | None:
    return None if counts is None else {key.hex(): counts[key] for key in sorted(counts)}


def _counts_from_json(document: dict[str, Any] | None) -> dict[bytes, int] | None:
    if document is None:
        return None
    return {bytes.fromhex(key): int(value) for key, value in document.items()}


def _blob_from_json(document: dict[str, Any]) -> BlobRecord:
    chunks = tuple(
        (bytes.fromhex(chunk_id), int(length)) for chunk_id, length in document["chunks"]
    )
    if any(len(chunk_id) != CHUNK_ID_BYTES for chunk_id, _ in chunks):
        raise IntegrityError("a manifest names a chunk by something that is no chunk id")
    return BlobRecord(kind=str(document["kind"]), length=int(document["length"]), chunks=chunks)


def _object_to_json(item: ObjectReference) -> dict[str, str | int]:
    return {"object_id": item.object_id.hex(), "digest": item.digest.hex(), "length": item.length}


def _object_from_json(document: dict[str, Any]) -> ObjectReference:
    return ObjectReference(
        object_id=bytes.fromhex(document["object_id"]),
        digest=bytes.fromhex(document["digest"]),
        length=int(document["length"]),
    )


def _known(cls: type[Any], document: Mapping[str, Any]) -> Any:  # one for all dataclasses  # noqa: ANN401 - JSON
    """The fields that this release knows, each of its own type. Raises: TypeError."""
    known = {item.name: item for item in fields(cls)}
    for name, value in document.items():
        kind = _JSON_TYPES.get(str(known[name].type)) if name in known else None
        if kind is not None and (not isinstance(value, kind) or isinstance(value, bool)):
            raise TypeError(name)
        if isinstance(value, str):
            value.encode()  # half a surrogate pair is no text
    return cls(**{name: value for name, value in document.items() if name in known})
