"""What was seen in vSphere: frozen values that `vsphere` returns, `decide` judges, `store` keeps.

Sizes are bytes. ``moref`` is vSphere's id of an object: good as long as it stays registered, and
never an identity. Empty text: unknown or unset.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from holdfast_common.identity import DatastoreId
from holdfast_common.job_spec import AreaSource


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainLink:
    """One VMDK descriptor. ``path`` is relative to its datastore, ``datastore_id`` is its URL."""

    datastore_id: DatastoreId
    datastore_moref: str
    datastore_name: str
    path: str

    @property
    def name(self) -> str:
        """``[datastore] path``: as vSphere writes it."""
        return f"[{self.datastore_name}] {self.path}"

    @property
    def location(self) -> str:
        """The same with the datastore's id: what stays when a datastore is renamed."""
        if not self.datastore_id:
            return self.name
        return f"{self.datastore_id.rstrip('/')}/{self.path}"


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskFacts:
    """One virtual disk of a VM or of a snapshot. Keyed by device key and backing uuid, never by name.

    ``chain`` is base first; ``change_id`` is of the last link. ``adapter`` is lsilogic, lsisas,
    pvscsi, buslogic, ide, sata, nvme or "". ``raw_mapping``: "", physical or virtual.
    ``unprotected_reason``: why a snapshot does not freeze it; empty for a disk that can be saved.
    ``excluded_by``: why whoever asked for the backup does not want it; empty: it is wanted.
    """

    device_key: int
    backing_uuid: str
    label: str
    capacity_bytes: int
    sector_bytes: int
    chain: tuple[ChainLink, ...]
    change_id: str
    mode: str
    sharing: str
    thin: bool
    raw_mapping: str
    encrypted: bool
    controller_key: int
    bus_number: int
    unit_number: int
    adapter: str
    bus_sharing: str
    unprotected_reason: str
    excluded_by: str = ""

    @property
    def left_out_reason(self) -> str:
        """Why a backup does not have it; empty: it does."""
        return self.excluded_by or self.unprotected_reason

    @property
    def tip(self) -> ChainLink | None:
        """The link that the device opens; None for a backing that we do not know."""
        return self.chain[-1] if self.chain else None


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotNode:
    """One snapshot of a VM's tree."""

    moref: str
    parent_moref: str
    name: str
    description: str
    created_at: str
    quiesced: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class VmFacts:
    """One VM. ``folder``, ``host``, ``pool`` are morefs; ``place`` is the folder's path.

    ``configuration_version`` is another one after every change of its configuration or snapshots. ``guest_…``: what
    VMware Tools tell of the guest.
    """

    moref: str
    name: str
    instance_uuid: str
    bios_uuid: str
    place: str
    folder_moref: str
    host_moref: str
    host_name: str
    pool_moref: str
    datacenter_moref: str
    datastore_names: tuple[str, ...]
    power_state: str
    connection_state: str
    template: bool
    hardware_version: int
    guest_id: str
    guest_name: str
    firmware: str
    tools_running: str
    tools_version_status: str
    change_tracking_supported: bool
    change_tracking_enabled: bool
    consolidation_needed: bool
    encrypted: bool
    has_vtpm: bool
    fault_tolerant: bool
    memory_mb: int
    cpu_count: int
    vmx: ChainLink | None
    snapshots: tuple[SnapshotNode, ...]
    current_snapshot_moref: str
    disks: tuple[DiskFacts, ...]
    configuration_version: str = ""
    mac_addresses: tuple[str, ...] = ()
    guest_addresses: tuple[str, ...] = ()
    guest_host_name: str = ""

    @property
    def frozen_disks(self) -> tuple[DiskFacts, ...]:
        """The disks that a snapshot freezes, whoever wants them."""
        return tuple(disk for disk in self.disks if not disk.unprotected_reason)

    @property
    def protected_disks(self) -> tuple[DiskFacts, ...]:
        """The disks that an image backup saves: those that a snapshot freezes and that are wanted."""
        return tuple(disk for disk in self.disks if not disk.left_out_reason)

    @property
    def unprotected_disks(self) -> tuple[DiskFacts, ...]:
        """The disks that are wanted and that no image backup can save."""
        return tuple(
            disk for disk in self.disks if disk.unprotected_reason and not disk.excluded_by
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class VmTag:
    """A tag on a VM. Names are unique in their category only."""

    category: str
    name: str

    @property
    def text(self) -> str:
        """``category/name``."""
        return f"{self.category}/{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class TagReading:
    """The tags of VMs by moref at one moment. A VM that is not among them: its tags are not known."""

    taken_at: str
    vms: Mapping[str, tuple[VmTag, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class HostFacts:
    """One host. ``certificate_sha256`` is empty when vSphere does not tell it."""

    moref: str
    name: str
    connection_state: str
    in_maintenance: bool
    version: str
    build: str
    compute_moref: str
    hardware_uuid: str
    certificate_sha256: str
    datastore_morefs: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DatastoreFacts:
    """One datastore. ``datastore_id`` is its URL: the same whatever it is called."""

    moref: str
    datastore_id: DatastoreId
    name: str
    kind: str
    capacity_bytes: int
    free_bytes: int
    accessible: bool
    datacenter_moref: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaceFacts:
    """A folder, datacenter, cluster, resource pool or vApp: ``kind`` is vSphere's name of it.

    ``path`` is for people, a slash in a name as %2f; ``inventory_path`` as vSphere itself writes it.
    """

    moref: str
    kind: str
    name: str
    parent_moref: str
    path: str
    inventory_path: str = ""
    root_pool_moref: str = ""
    vm_folder_moref: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerFacts:
    """The vCenter or host itself. ``instance_uuid`` is its identity."""

    instance_uuid: str
    product: str
    version: str
    build: str
    is_vcenter: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Inventory:
    """Everything of one vCenter at one moment."""

    server: ServerFacts
    taken_at: str
    vms: tuple[VmFacts, ...]
    hosts: tuple[HostFacts, ...]
    datastores: tuple[DatastoreFacts, ...]
    places: tuple[PlaceFacts, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotFacts:
    """Our snapshot of a VM: everything in it is read from the snapshot's own configuration.

    ``disks`` name the frozen links and carry the change id of this moment; ``configuration`` is the
    VM's as JSON (see `vsphere.configuration`). ``reached`` is the level of consistency that
    ``evidence`` shows, whatever was asked; ``warnings``: what an operator should know.
    """

    moref: str
    vm: VmFacts
    created_at: str
    disks: tuple[DiskFacts, ...]
    configuration: str
    asked: str
    reached: str
    evidence: str
    warnings: tuple[str, ...] = ()

    @property
    def frozen_disks(self) -> tuple[DiskFacts, ...]:
        """The disks that the snapshot froze, whoever wants them."""
        return tuple(disk for disk in self.disks if not disk.unprotected_reason)

    @property
    def protected_disks(self) -> tuple[DiskFacts, ...]:
        """The disks that are read: those that the snapshot froze and that are wanted."""
        return tuple(disk for disk in self.disks if not disk.left_out_reason)


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskDecision:
    """What to read of one disk; ``since`` is the change id to ask with, ``*`` for what is allocated."""

    device_key: int
    areas: AreaSource
    since: str
    reason: str
