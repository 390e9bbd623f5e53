"""What one agent is asked to do: the whole of a job, as frozen values.

Between the controller's `runs` and the agent's `job_runner`; `wire_codec` carries it across.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from holdfast_common.identity import DatastoreId, JobId, LineageId, PointId, RepositoryId, RunId
from holdfast_common.logs import Secret

_ALL: Final = 1_000_000


class TransportKind(StrEnum):
    """A way to reach one disk."""

    DIRECT = "direct"
    HOTADD = "hotadd"
    NFC = "nfc"
    FILE = "file"


class FileFormat(StrEnum):
    """The kind of VMDK that a single disk is restored to."""

    SPARSE = "sparse"
    FLAT = "flat"
    STREAM_OPTIMIZED = "stream-optimized"


class AreaSource(StrEnum):
    """Which parts of a disk a backup reads."""

    EVERYTHING = "everything"
    ALLOCATED = "allocated"
    CHANGED = "changed"


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainFile:
    """A VMDK descriptor, relative to the folder that the agent knows by the datastore's id."""

    datastore_id: DatastoreId
    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectTicket:
    """An NFS datastore that is mounted on the proxy: the chain base first, or the one file to create."""

    chain: tuple[ChainFile, ...]
    kind = TransportKind.DIRECT


@dataclass(frozen=True, slots=True, kw_only=True)
class HotAddTicket:
    """A disk attached to the proxy's VM: found by controller and unit, proven by uuid. No path."""

    bus_number: int
    unit_number: int
    disk_uuid: str
    kind = TransportKind.HOTADD


@dataclass(frozen=True, slots=True, kw_only=True)
class NfcTicket:
    """One disk's URL of a transfer lease, and the SHA-256 (lower-case hex) of its host's certificate."""

    url: str
    certificate_sha256: str
    create: bool = False
    kind = TransportKind.NFC


@dataclass(frozen=True, slots=True, kw_only=True)
class FileTicket:
    """A VMDK file on the proxy, below a folder that the agent's configuration allows."""

    path: str
    format: FileFormat
    kind = TransportKind.FILE


DiskTicket = DirectTicket | HotAddTicket | NfcTicket | FileTicket


@dataclass(frozen=True, slots=True, kw_only=True)
class VmIdentity:
    """Identity is vCenter + instance uuid; name and moref are labels."""

    vcenter_id: str
    instance_uuid: str
    bios_uuid: str
    name: str
    moref: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Consistency:
    """The level asked and the level reached (application, filesystem, crash, cold), with the evidence."""

    asked: str
    reached: str
    evidence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Blob:
    """A piece of the VM that is no disk: kind is ``vmx``, ``ovf`` or ``nvram``."""

    kind: str
    data: bytes = field(repr=False)
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskToBackUp:
    """One disk of a backup. ``chain`` is for the record; what is opened is the ticket.

    ``lane``: disks of one lane are copied one after another, those of different ones may be side by side.
    """

    device_key: int
    backing_uuid: str
    label: str
    capacity_bytes: int
    sector_bytes: int
    storage_policy: str
    chain: tuple[str, ...]
    change_id: str
    adapter: str
    areas: AreaSource
    areas_reason: str
    ticket: DiskTicket
    lane: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackingAudit:
    """How much of what change tracking calls unchanged is read again and compared.

    ``share_millionths``: of each disk; ``turn``: which share, so that as many turns as shares read all of it.
    """

    share_millionths: int
    turn: int = 0

    def bytes_of(self, length: int) -> int:
        """How many of so many bytes it reads, roughly: it is a random sample."""
        return length * min(self.share_millionths, _ALL) // _ALL


NO_AUDIT: Final = TrackingAudit(share_millionths=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class BackUpDisks:
    """Back up a VM's disks and configuration as one restore point.

    ``keys`` is the repository's `WriterKeys`, encoded; ``configuration`` is JSON;
    ``previous_point_id`` is None for the first point of a lineage. ``damaged_packs``: digests of those that a
    check found to be so; what they hold is stored anew.
    """

    vm: VmIdentity
    lineage_id: LineageId
    level_asked: str
    level: str
    level_reason: str
    previous_point_id: PointId | None
    consistency: Consistency
    snapshot_time: str
    group_id: str
    transport: TransportKind
    configuration: str
    blobs: tuple[Blob, ...]
    disks: tuple[DiskToBackUp, ...]
    keys: Secret
    compression_level: int = 3
    damaged_packs: tuple[bytes, ...] = ()
    audit: TrackingAudit = NO_AUDIT


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskToRestore:
    """One disk of a point and where it goes (or, to verify, where it lies)."""

    device_key: int
    backing_uuid: str
    adapter_type: str
    ticket: DiskTicket


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreDisks:
    """Write disks of a point to new disks or files. ``keys``: encoded `ReaderKeys`.

    ``blob_kinds``: small blobs of the point that the result shall bring along, e.g. ``nvram``.
    """

    point_id: PointId
    lineage_id: LineageId
    disks: tuple[DiskToRestore, ...]
    keys: Secret
    blob_kinds: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyDisks:
    """Read disks back and compare them with a point; writes nothing. ``keys``: encoded `ReaderKeys`."""

    point_id: PointId
    lineage_id: LineageId
    disks: tuple[DiskToRestore, ...]
    keys: Secret


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckRepository:
    """Check structure, or all data too; of some points, or of all (no ids). ``keys``: one per lineage.

    ``expected_point_ids``: all that the catalogue knows; the repository alone cannot tell that one is gone.
    """

    read_data: bool
    point_ids: tuple[PointId, ...]
    keys: tuple[Secret, ...]
    expected_point_ids: tuple[PointId, ...] = ()
    subset: str = ""  # of the data: "3/30", "5%"; empty: all


@dataclass(frozen=True, slots=True, kw_only=True)
class RepairRepository:
    """Mend what can be, from a copy of the repository in ``source_folder`` (empty: from its own means).

    ``keys``: one per lineage. ``dry_run``: look, and change nothing. ``other_keys``: of the lineages of another
    repository, which ``source_folder`` is then; ``content_keys``: a writer's, that seal here what comes from it.
    """

    keys: tuple[Secret, ...]
    expected_point_ids: tuple[PointId, ...] = ()
    source_folder: str = ""
    dry_run: bool = False
    other_keys: tuple[Secret, ...] = ()
    content_keys: Secret | None = None  # None: nothing comes from another repository


@dataclass(frozen=True, slots=True, kw_only=True)
class ListPoints:
    """List committed points, for the catalogue; ``job_id`` None: of all jobs. ``keys``: one per lineage."""

    keys: tuple[Secret, ...]
    job_id: JobId | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckNewFile:
    """Look whether a disk can be restored to a new file; makes nothing."""

    ticket: FileTicket


Work = (
    BackUpDisks
    | RestoreDisks
    | VerifyDisks
    | CheckRepository
    | RepairRepository
    | ListPoints
    | CheckNewFile
)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSpec:
    """One agent's work, with the repository it is for."""

    run_id: RunId
    repository_id: RepositoryId
    work: Work


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One try at a job; a higher number replaces a lower one."""

    job_id: JobId
    number: int
