"""Tickets for all disks of a snapshot, by the transport that was chosen; what was lent is given back at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Final

from holdfast_common.errors import Refused
from holdfast_common.job_spec import DiskTicket, DiskToBackUp, TransportKind
from holdfast_controller.facts import DiskFacts, SnapshotFacts
from holdfast_controller.ledger import JobLedger
from holdfast_controller.vsphere.changed_areas import DiskAreas
from holdfast_controller.vsphere.disk_tickets import direct_ticket
from holdfast_controller.vsphere.hot_add import hot_added
from holdfast_controller.vsphere.session import VsphereSession
from holdfast_controller.vsphere.transfer_leases import snapshot_export

Tickets = Mapping[int, DiskTicket]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Loan:
    """What is to be read, and by whom."""

    session: VsphereSession
    ledger: JobLedger
    snapshot: SnapshotFacts
    proxy_instance_uuid: str


@contextmanager
def source_tickets(
    session: VsphereSession,
    ledger: JobLedger,
    *,
    snapshot: SnapshotFacts,
    transport: TransportKind,
    proxy_instance_uuid: str,
) -> Iterator[Tickets]:
    """Tickets by device key, to read the frozen disks. Raises: Refused, VsphereFailed."""
    lend = LENDERS.get(transport)
    if lend is None:
        raise Refused("this transport does not exist yet", transport=transport)
    loan = _Loan(
        session=session,
        ledger=ledger,
        snapshot=snapshot,
        proxy_instance_uuid=proxy_instance_uuid,
    )
    with lend(loan) as tickets:
        yield tickets


def disk_to_back_up(
    disk: DiskFacts, areas: DiskAreas, ticket: DiskTicket, *, lane: int
) -> DiskToBackUp:
    """One disk's part of the agent's work. Disks of different lanes may be copied side by side."""
    return DiskToBackUp(
        device_key=disk.device_key,
        backing_uuid=disk.backing_uuid,
        label=disk.label,
        capacity_bytes=disk.capacity_bytes,
        sector_bytes=disk.sector_bytes,
        storage_policy="",
        chain=tuple(link.location for link in disk.chain),
        change_id=disk.change_id,
        adapter=f"{disk.adapter} {disk.bus_number}:{disk.unit_number}",
        areas=areas.source,
        areas_reason=areas.reason,
        ticket=ticket,
        lane=lane,
    )


@contextmanager
def _direct(loan: _Loan) -> Iterator[Tickets]:
    yield {disk.device_key: direct_ticket(disk) for disk in loan.snapshot.protected_disks}


@contextmanager
def _hot_added(loan: _Loan) -> Iterator[Tickets]:
    with hot_added(
        loan.session,
        loan.ledger,
        proxy_instance_uuid=loan.proxy_instance_uuid,
        disks=loan.snapshot.protected_disks,
        owner=loan.snapshot.vm,
    ) as tickets:
        yield tickets


@contextmanager
def _exported(loan: _Loan) -> Iterator[Tickets]:
    with snapshot_export(loan.session, loan.ledger, snapshot=loan.snapshot) as tickets:
        yield tickets


LENDERS: Final[Mapping[TransportKind, Callable[[_Loan], AbstractContextManager[Tickets]]]] = {
    TransportKind.DIRECT: _direct,
    TransportKind.HOTADD: _hot_added,
    TransportKind.NFC: _exported,
}
