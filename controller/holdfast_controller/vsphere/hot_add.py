"""A snapshot's disks (or new disks) attached to a proxy's VM, always detached again: ledger first.

After `snapshot`, before the agent. A device is ours only when controller, unit and file all match
the ledger's entry; nothing else of the proxy is touched, and no file is ever deleted here: no
device spec of ours has a ``fileOperation``.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Final

from pyVmomi import vim

from holdfast_common.errors import (
    HoldfastError,
    Interrupted,
    SourceGone,
    TimedOut,
    VsphereFailed,
)
from holdfast_common.job_spec import HotAddTicket
from holdfast_common.retry import backoff_seconds
from holdfast_controller.facts import ChainLink, DiskFacts, VmFacts
from holdfast_controller.ledger import EntryId, EntryKind, JobLedger, LedgerEntry
from holdfast_controller.vsphere import hot_add_slots, inventory, properties
from holdfast_controller.vsphere.effects import run_task, wait_until_idle
from holdfast_controller.vsphere.foreign import Foreign, Reference, reference
from holdfast_controller.vsphere.hot_add_slots import Attachment
from holdfast_controller.vsphere.lost_vms import check_destroyed, lost_vm_facts
from holdfast_controller.vsphere.session import VsphereSession

log = logging.getLogger(__name__)

# A proxy that is being moved answers after minutes; its other jobs wait so long too.
RECONFIGURE_TIMEOUT_SECONDS: Final = 1800.0
DETACHES_MAX: Final = 4
FIRST_PAUSE_SECONDS: Final = 1.0
PAUSE_SECONDS_MAX: Final = 30.0
TO_READ: Final = "independent_nonpersistent"  # the proxy's own writes go nowhere
# Independent: a snapshot that somebody makes of the proxy leaves the disk alone.
TO_WRITE: Final = "independent_persistent"

# One Reconfigure of a proxy at a time in this process, so that no two jobs choose one unit.
_proxies: dict[str, threading.Lock] = {}
_proxies_guard = threading.Lock()


@contextmanager
def hot_added(
    session: VsphereSession,
    ledger: JobLedger,
    *,
    proxy_instance_uuid: str,
    disks: Sequence[DiskFacts],
    writable: bool = False,
    owner: VmFacts | None = None,
) -> Iterator[Mapping[int, HotAddTicket]]:
    """The disks attached to a proxy's VM for as long as the block runs: tickets by their own keys.

    ``writable`` only for new disks of ours. ``owner`` is the VM whose disks they are; None: nobody's
    yet. Close whatever has the disks open before the block ends. Raises: Refused, SourceGone, VsphereFailed and its kin; nothing stays
    attached then, or the ledger has it as a debt.
    """
    moref = inventory.find_moref(session, instance_uuid=proxy_instance_uuid)
    proxy, around = inventory.read_vm_around(session, moref)
    hot_add_slots.check_allowed(proxy, disks, around, owner=owner, writable=writable)
    with ExitStack() as attached:
        yield {
            disk.device_key: attached.enter_context(
                _attached(session, ledger, proxy, disk, owner=owner, writable=writable)
            )
            for disk in disks
        }


def detach_own_disk(session: VsphereSession, entry: LedgerEntry) -> None:
    """Detach what a ledger entry attached, if it is still there. Harmless when it is not.

    A proxy that was destroyed has nothing attached any more. The file stays, always.
    Raises: VsphereFailed and its kin when it may still be attached.
    """
    wanted = Attachment.of(entry.facts)
    try:
        machine = _present_proxy(session, entry)
        with _one_at_a_time(entry.fact("proxy_instance_uuid")):
            # an attachment whose reply was lost may still be on its way
            wait_until_idle(session, machine, timeout_seconds=RECONFIGURE_TIMEOUT_SECONDS)
            _detach_bounded(session, machine, wanted)
    except SourceGone:
        check_destroyed(
            session, entry, vm_name=entry.fact("proxy_name"), left="a disk that was attached to it"
        )
        log.info("the proxy of an attached disk was destroyed", extra={"entry": entry.entry_id})


def attached_files(session: VsphereSession, vm_moref: str) -> list[str]:
    """The files of all disks that a VM has now. Raises: SourceGone, VsphereFailed."""
    devices = _devices(session, reference(vim.VirtualMachine, vm_moref))
    names = [
        str(getattr(each.backing, "fileName", None) or "")
        for each in devices
        if isinstance(each, vim.vm.device.VirtualDisk)
    ]
    return [name for name in names if name]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Order:
    """A disk to be attached."""

    disk: DiskFacts
    link: ChainLink
    mode: str


@contextmanager
def _attached(
    session: VsphereSession,
    ledger: JobLedger,
    proxy: VmFacts,
    disk: DiskFacts,
    *,
    owner: VmFacts | None,
    writable: bool,
) -> Iterator[HotAddTicket]:
    assert disk.tip is not None, "checked by check_allowed"
    order = _Order(disk=disk, link=disk.tip, mode=TO_WRITE if writable else TO_READ)
    machine = reference(vim.VirtualMachine, proxy.moref)
    entry_id: EntryId | None = None  # None: nothing was begun
    try:
        with _one_at_a_time(proxy.instance_uuid):
            wait_until_idle(session, machine, timeout_seconds=RECONFIGURE_TIMEOUT_SECONDS)
            slot = hot_add_slots.free_slot(_devices(session, machine), proxy=proxy.name)
            wanted = Attachment.at(slot, order.link)
            entry_id = ledger.intend(
                EntryKind.HOT_ADD, _facts(wanted, order, proxy=proxy, owner=owner)
            )
            key = _attach(session, machine, wanted, order, proxy_name=proxy.name)
            ledger.ledger.made(entry_id, {"attached_key": str(key)})
        yield HotAddTicket(
            bus_number=slot.bus_number,
            unit_number=slot.unit_number,
            disk_uuid=disk.backing_uuid,
        )
    finally:
        if entry_id is not None:
            _give_back(session, ledger, entry_id)


def _facts(
    wanted: Attachment, order: _Order, *, proxy: VmFacts, owner: VmFacts | None
) -> dict[str, str]:
    """What the undo needs, and whose disk it is: no new run on that VM before it is back."""
    facts = {
        **wanted.facts(),
        "proxy": proxy.moref,
        "proxy_name": proxy.name,
        "proxy_instance_uuid": proxy.instance_uuid,
        "disk_uuid": order.disk.backing_uuid,
        "mode": order.mode,
        **lost_vm_facts(proxy),
    }
    if owner is not None:
        facts |= {"vm": owner.moref, "vm_name": owner.name, "instance_uuid": owner.instance_uuid}
    return facts


def _attach(
    session: VsphereSession,
    machine: Reference,
    wanted: Attachment,
    order: _Order,
    *,
    proxy_name: str,
) -> int:
    """The new device's key at the proxy."""
    backing = vim.vm.device.VirtualDisk.FlatVer2BackingInfo(
        fileName=order.link.name, diskMode=order.mode
    )
    if order.link.datastore_moref:
        backing.datastore = reference(vim.Datastore, order.link.datastore_moref)
    device = vim.vm.device.VirtualDisk(
        key=-1,
        controllerKey=wanted.controller_key,
        unitNumber=wanted.unit_number,
        capacityInKB=order.disk.capacity_bytes // 1024,
        capacityInBytes=order.disk.capacity_bytes,
        backing=backing,
    )

    def landed() -> Foreign | None:
        return _find(session, machine, wanted)

    found = run_task(
        session,
        machine,
        "ReconfigVM_Task",
        what=f"attaching {order.link.name} to {proxy_name}",
        landed=landed,
        timeout_seconds=RECONFIGURE_TIMEOUT_SECONDS,
        spec=_spec("add", device),
    )
    if str(found.backing.diskMode) != order.mode:
        raise VsphereFailed(
            "a disk was attached in another mode than asked for",
            file=order.link.name,
            asked=order.mode,
            mode=str(found.backing.diskMode),
        )
    return int(found.key)


def _give_back(session: VsphereSession, ledger: JobLedger, entry_id: EntryId) -> None:
    """Detach on the way out; what fails is a debt, and the block's own error goes on."""
    entry = ledger.ledger.entry(entry_id)
    try:
        detach_own_disk(session, entry)
    except HoldfastError as error:
        log.warning(
            "a disk could not be detached from its proxy; it is a debt now",
            extra={"proxy": entry.fact("proxy_name"), "error": str(error)},
        )
        ledger.ledger.debt(entry_id, error.line())
    else:
        ledger.ledger.gone(entry_id)


def _detach_bounded(session: VsphereSession, machine: Reference, wanted: Attachment) -> None:
    """The guest may hold the disk for a moment longer: a few tries."""
    waits = backoff_seconds(
        first=FIRST_PAUSE_SECONDS, maximum=PAUSE_SECONDS_MAX, attempts=DETACHES_MAX
    )

    def landed() -> bool | None:
        return True if _find(session, machine, wanted) is None else None

    while (device := _find(session, machine, wanted)) is not None:
        try:
            run_task(
                session,
                machine,
                "ReconfigVM_Task",
                what=f"detaching {wanted.file_name}",
                landed=landed,
                timeout_seconds=RECONFIGURE_TIMEOUT_SECONDS,
                spec=_spec("remove", device),
            )
        except VsphereFailed as error:
            wait = next(waits, None)
            if wait is None:
                raise
            log.info("detaching a disk failed; trying again", extra={"error": str(error)})
            if session.stop.wait(wait):
                raise Interrupted("the session at vSphere is being closed") from error


def _spec(operation: str, device: Foreign) -> Foreign:
    """One device change, without a file operation: for a removal it would delete the disk."""
    change = vim.vm.device.VirtualDeviceSpec(operation=operation, device=device)
    return vim.vm.ConfigSpec(deviceChange=[change])


def _find(session: VsphereSession, machine: Reference, wanted: Attachment) -> Foreign | None:
    """Our device as the proxy has it now; None when it has none."""
    for device in _devices(session, machine):
        if wanted.is_device(device):
            return device
    return None


def _devices(session: VsphereSession, machine: Reference) -> Sequence[Foreign]:
    """A VM's devices now. Raises: SourceGone; VsphereFailed when they are not shown."""
    values = properties.read_one(session, machine, ["config.hardware.device"])
    found: Sequence[Foreign] = values.get("config.hardware.device") or []
    if not found:
        # every VM has devices: an empty answer says nothing about what is attached
        raise VsphereFailed("a VM shows no devices", object=str(machine._moId))
    return found


def _present_proxy(session: VsphereSession, entry: LedgerEntry) -> Reference:
    """The proxy's VM today: it may have been registered anew. Raises: SourceGone."""
    identity = entry.fact("proxy_instance_uuid")
    machine = reference(vim.VirtualMachine, entry.fact("proxy"))
    try:
        values = properties.read_one(session, machine, ["config.instanceUuid"])
        if values.get("config.instanceUuid") in (identity, None):
            return machine
    except SourceGone:
        log.info("a proxy is no longer where it was", extra={"proxy": entry.fact("proxy_name")})
    return reference(vim.VirtualMachine, inventory.find_moref(session, instance_uuid=identity))


@contextmanager
def _one_at_a_time(proxy_instance_uuid: str) -> Iterator[None]:
    with _proxies_guard:
        lock = _proxies.setdefault(proxy_instance_uuid, threading.Lock())
    if not lock.acquire(timeout=2 * RECONFIGURE_TIMEOUT_SECONDS):
        raise TimedOut("a proxy is being reconfigured for too long", proxy=proxy_instance_uuid)
    try:
        yield
    finally:
        lock.release()
