"""Tickets for all disks of a snapshot, by the transport that was chosen; what was lent is given back at the end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from holdfast_common.errors import Refused
from holdfast_common.job_spec import DiskTicket, TransportKind
from holdfast_controller.facts import SnapshotFacts
from holdfast_controller.ledger import JobLedger
from holdfast_controller.vsphere.disk_tickets import direct_ticket
from holdfast_controller.vsphere.session import VsphereSession


@contextmanager
def source_tickets(
    session: VsphereSession,
    ledger: JobLedger,
    *,
    snapshot: SnapshotFacts,
    transport: TransportKind,
    proxy_instance_uuid: str,
) -> Iterator[Mapping[int, DiskTicket]]:
    """Tickets by device key, to read the frozen disks. Raises: Refused, VsphereFailed."""
    if transport is TransportKind.DIRECT:
        yield {disk.device_key: direct_ticket(disk) for disk in snapshot.protected_disks}
        return
    raise Refused("this transport does not exist yet", transport=transport)
