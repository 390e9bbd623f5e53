"""Every way by which an agent reads and writes the one disk of a `Site`: tickets, and what lies behind them.

For measurements. Nothing of it is big in memory: disks of any size are only as large as their data.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from holdfast_agent.transports import direct_datastore
from holdfast_common.blocks.stream import random_stream
from holdfast_common.formats.vmdk_stream_writer import StreamOptimizedWriter
from holdfast_common.job_spec import DiskTicket, FileFormat, HotAddTicket, NfcTicket
from support.backup_jobs import Site, direct_ticket, disk_uuid, goes_on
from support.lease_host_process import LeaseHostProcess, lease_host_process

RESTORED = "restored"


class DiskWay(Protocol):
    """``source`` before each backup, ``target`` before each restore, ``restored`` before each read-back.

    ``source`` is None for a way that only takes restores.
    """

    def source(self) -> DiskTicket | None: ...

    def target(self) -> DiskTicket: ...

    def restored(self) -> DiskTicket: ...


@dataclass
class Direct:
    """Files of an NFS datastore."""

    key: int

    def source(self) -> DiskTicket:
        return direct_ticket(f"web/disk-{self.key}.vmdk")

    def target(self) -> DiskTicket:
        return direct_ticket(f"web/{RESTORED}.vmdk")

    restored = target


@dataclass
class HotAdd:
    """Attached disks: files in a folder of devices."""

    site: Site
    key: int

    def source(self) -> DiskTicket:
        ticket, disk = self._slot(unit=1)
        if not disk.exists():
            os.link(self.site.flat_file(self.key), disk)
        return ticket

    def target(self) -> DiskTicket:
        ticket, disk = self._slot(unit=2)
        with disk.open("wb") as file:
            file.truncate(self.site.disks[self.key])
        return ticket

    def restored(self) -> DiskTicket:
        return self._slot(unit=2)[0]

    def _slot(self, *, unit: int) -> tuple[DiskTicket, Path]:
        folder = self.site.root / "devices" / f"scsi0:{unit}"
        folder.mkdir(exist_ok=True)
        (folder / "uuid").write_text(disk_uuid(self.key))
        ticket = HotAddTicket(bus_number=0, unit_number=unit, disk_uuid=disk_uuid(self.key))
        return ticket, folder / "disk"


@dataclass
class Nfc:
    """Streams of transfer leases."""

    site: Site
    key: int
    host: LeaseHostProcess

    def source(self) -> DiskTicket:
        exported = self.site.root / "exported.vmdk"
        export(self.site, self.key, exported)
        self.host.serve(exported)
        return self._ticket()

    def target(self) -> DiskTicket:
        return self._ticket()

    def restored(self) -> DiskTicket:
        uploaded = self.site.root / "uploaded.vmdk"
        self.host.keep_upload(uploaded)
        self.host.serve(uploaded)
        return self._ticket()

    def _ticket(self) -> NfcTicket:
        return NfcTicket(url=self.host.url, certificate_sha256=self.host.certificate_sha256)


@dataclass
class Files:
    """Single disks restored to files of one format."""

    site: Site
    file_format: FileFormat

    def source(self) -> None:
        return None

    def target(self) -> DiskTicket:
        return self.site.file_ticket(f"{self.file_format}.vmdk", self.file_format)

    restored = target


@contextmanager
def disk_ways(site: Site, key: int) -> Iterator[dict[str, DiskWay]]:
    """All ways, by name."""
    with ExitStack() as stack:
        host = stack.enter_context(lease_host_process())
        files = {f"file {each}": Files(site, each) for each in FileFormat}
        yield {
            "direct": Direct(key),
            "hotadd": HotAdd(site, key),
            "nfc": Nfc(site, key, host),
            **files,
        }


def export(site: Site, key: int, path: Path) -> None:
    """The disk as a host streams it."""
    capacity = site.disks[key]
    opened = direct_datastore.open_source(
        direct_ticket(f"web/disk-{key}.vmdk"),
        site.configuration,
        capacity_bytes=capacity,
        check=goes_on,
    )
    with closing(opened) as source, path.open("wb") as file:
        writer = StreamOptimizedWriter(file, capacity)
        with random_stream(source, source.allocated() or (), check=goes_on) as stream:
            for block in stream:
                if block.data is not None:
                    writer.write(block.offset, block.data)
        writer.finish()
