"""Jobs for tests of pipelines: a VM on an NFS folder, its backups, restores and read-backs."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path

from holdfast_agent.configuration import AgentConfiguration
from holdfast_agent.pipelines.backup_disks import back_up_disks
from holdfast_agent.transports import direct_datastore
from holdfast_common.blocks.sink import NewDisk
from holdfast_common.extents import Extent
from holdfast_common.identity import DatastoreId, LineageId, PointId, RunId
from holdfast_common.job_result import JobResult
from holdfast_common.job_spec import (
    AreaSource,
    BackUpDisks,
    Blob,
    ChainFile,
    Consistency,
    DirectTicket,
    DiskTicket,
    DiskToBackUp,
    DiskToRestore,
    FileFormat,
    FileTicket,
    JobSpec,
    RestoreDisks,
    TransportKind,
    VerifyDisks,
    VmIdentity,
    Work,
)
from support.agent_configurations import agent_configuration
from support.block_source_contract import write_used_sectors
from support.local_job_context import LocalJobContext, LocalRepository, local_repository

DATASTORE = DatastoreId("ds:///vmfs/volumes/nfs-1/")
LINEAGE = LineageId("vc-1/vm-1")
BLOBS = (
    Blob(kind="vmx", data=b'displayName = "web"\n'),
    Blob(kind="nvram", data=bytes(range(256)) * 300, note="read after the snapshot"),
)


def goes_on() -> None:
    """A job that nobody stops."""


def disk_uuid(device_key: int) -> str:
    return f"6000c290-0000-0000-0000-{device_key:012d}"


@dataclass
class Site:
    """A repository, a datastore, folders for restores, and one VM's disks in it."""

    root: Path
    repository: LocalRepository
    disks: dict[int, int] = field(default_factory=dict)  # device key: capacity

    @property
    def configuration(self) -> AgentConfiguration:
        return agent_configuration(
            datastores={DATASTORE: self.root / "nfs"},
            restore_folders=(self.root / "restores",),
            repair_folders=(self.root / "copies",),
            device_folder=self.root / "devices",
        )

    def context(self, **changes: object) -> LocalJobContext:
        context = LocalJobContext(repository=self.repository, configuration=self.configuration)
        for name, value in changes.items():
            setattr(context, name, value)
        return context

    def spec(self, work: Work) -> JobSpec:
        return JobSpec(
            run_id=RunId("run-1"), repository_id=self.repository.repository_id, work=work
        )

    def flat_file(self, device_key: int) -> Path:
        return self.root / "nfs" / "web" / f"disk-{device_key}-flat.vmdk"

    def make_disk(self, device_key: int, content: bytes) -> None:
        """A disk of the VM on the datastore."""
        disk = NewDisk(capacity_bytes=len(content), disk_uuid=disk_uuid(device_key))
        sink = direct_datastore.open_sink(
            direct_ticket(f"web/disk-{device_key}.vmdk"),
            self.configuration,
            disk=disk,
            check=goes_on,
        )
        with closing(sink):
            write_used_sectors(sink, content)
            sink.finish()
        self.disks[device_key] = len(content)

    def write(self, device_key: int, offset: int, data: bytes) -> Extent:
        """As the guest; returns what changed."""
        with self.flat_file(device_key).open("r+b") as file:
            file.seek(offset)
            file.write(data)
        return Extent(offset=offset, length=len(data))

    def content(self, device_key: int) -> bytes:
        return self.flat_file(device_key).read_bytes()

    def disk_to_back_up(self, device_key: int, **changes: object) -> DiskToBackUp:
        disk = DiskToBackUp(
            device_key=device_key,
            backing_uuid=disk_uuid(device_key),
            label=f"Hard disk {device_key}",
            capacity_bytes=self.disks[device_key],
            sector_bytes=512,
            storage_policy="",
            chain=(f"[nfs-1] web/disk-{device_key}.vmdk",),
            change_id="52 de/1",
            adapter="pvscsi 0:0",
            areas=AreaSource.EVERYTHING,
            areas_reason="first backup",
            ticket=direct_ticket(f"web/disk-{device_key}.vmdk"),
        )
        return replace(disk, **changes)  # type: ignore[arg-type] # names are the test's business

    def backup_work(
        self,
        disks: Sequence[DiskToBackUp] | None = None,
        *,
        previous: PointId | None = None,
        level: str = "full",
    ) -> BackUpDisks:
        chosen = disks or [self.disk_to_back_up(key) for key in self.disks]
        return BackUpDisks(
            vm=VmIdentity(
                vcenter_id="vc-1",
                instance_uuid="5000-1",
                bios_uuid="4200-1",
                name="web",
                moref="vm-1",
            ),
            lineage_id=LINEAGE,
            level_asked=level,
            level=level,
            level_reason="asked",
            previous_point_id=previous,
            consistency=Consistency(asked="crash", reached="crash", evidence="nothing quiesced"),
            snapshot_time="2024-05-01T10:00:00.000000Z",
            group_id="",
            transport=TransportKind.DIRECT,
            configuration='{"hardware": "vmx-19"}',
            blobs=BLOBS,
            disks=tuple(chosen),
            keys=self.repository.writer_keys(LINEAGE),
        )

    def back_up(
        self,
        disks: Sequence[DiskToBackUp] | None = None,
        *,
        previous: PointId | None = None,
        context: LocalJobContext | None = None,
        level: str = "full",
    ) -> JobResult:
        work = self.backup_work(disks, previous=previous, level=level)
        return back_up_disks(self.spec(work), context or self.context())

    def incremental(self, previous: PointId, changes: dict[int, list[Extent]]) -> JobResult:
        """A backup of what changed, as change tracking says."""
        disks = [
            self.disk_to_back_up(key, areas=AreaSource.CHANGED, areas_reason="changes")
            for key in self.disks
        ]
        extents = {key: changes.get(key, []) for key in self.disks}
        context = self.context(extents=extents)
        return self.back_up(disks, previous=previous, context=context, level="incremental")

    def disk_to_restore(self, device_key: int, ticket: DiskTicket) -> DiskToRestore:
        return DiskToRestore(
            device_key=device_key,
            backing_uuid=disk_uuid(device_key),
            adapter_type="lsilogic",
            ticket=ticket,
        )

    def restore_work(self, point_id: PointId, disks: dict[int, DiskTicket]) -> RestoreDisks:
        return RestoreDisks(
            point_id=point_id,
            lineage_id=LINEAGE,
            disks=tuple(self.disk_to_restore(key, ticket) for key, ticket in disks.items()),
            keys=self.repository.reader_keys(LINEAGE),
        )

    def verify_work(self, point_id: PointId, disks: dict[int, DiskTicket]) -> VerifyDisks:
        return VerifyDisks(
            point_id=point_id,
            lineage_id=LINEAGE,
            disks=tuple(self.disk_to_restore(key, ticket) for key, ticket in disks.items()),
            keys=self.repository.reader_keys(LINEAGE),
        )

    def file_ticket(self, name: str, file_format: FileFormat = FileFormat.FLAT) -> FileTicket:
        return FileTicket(path=str(self.root / "restores" / name), format=file_format)


def direct_ticket(*paths: str) -> DirectTicket:
    return DirectTicket(chain=tuple(ChainFile(datastore_id=DATASTORE, path=path) for path in paths))


def make_site(root: Path) -> Site:
    """An empty site."""
    for name in ("nfs/web", "restores", "devices"):
        (root / name).mkdir(parents=True)
    return Site(root=root, repository=local_repository(root / "repository"))


def point_of(result: JobResult) -> PointId:
    """The point that a backup made."""
    assert result.point_id is not None
    return result.point_id
