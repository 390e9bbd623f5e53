"""Transfer leases: vSphere lends the disks of a snapshot to be read, or those of a new VM to be filled.

A lease ends by itself some minutes after nobody renews it, so a thread renews it while the block
runs. The agent gets one URL for each disk and the pin of the host that serves it.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final
from urllib.parse import urlsplit, urlunsplit

from pyVmomi import vim

from holdfast_common.errors import (
    HoldfastError,
    SourceGone,
    TimedOut,
    VsphereFailed,
    VsphereUnavailable,
)
from holdfast_common.job_spec import NfcTicket
from holdfast_common.retry import backoff_seconds
from holdfast_controller.facts import DiskFacts, SnapshotFacts, VmFacts
from holdfast_controller.ledger import EntryId, EntryKind, JobLedger, LedgerEntry
from holdfast_controller.vsphere import faults, pinning, properties
from holdfast_controller.vsphere.foreign import Foreign, Reference, moref_of, reference
from holdfast_controller.vsphere.inventory import Surroundings, read_surroundings, read_vm_around
from holdfast_controller.vsphere.session import VsphereSession

log = logging.getLogger(__name__)

READY_TIMEOUT_SECONDS: Final = 600.0
POLL_SECONDS: Final = 0.5
RENEW_SECONDS_MAX: Final = 60.0
RENEWALS_PER_TIMEOUT: Final = 4
# A lease whose reply was lost lives on until its own timeout (300 s by default) and blocks the next.
COVERED_ATTEMPTS_MAX: Final = 30
_SLOT: Final = re.compile(r"/(?P<kind>[A-Za-z]+)(?P<bus>\d+):(?P<unit>\d+)$")
_FAMILIES: Final[Mapping[str, str]] = {
    "ParaVirtualSCSIController": "scsi",
    "VirtualLsiLogicController": "scsi",
    "VirtualLsiLogicSASController": "scsi",
    "VirtualBusLogicController": "scsi",
    "VirtualSCSIController": "scsi",
    "VirtualIDEController": "ide",
    "VirtualAHCIController": "sata",
    "VirtualSATAController": "sata",
    "VirtualNVMEController": "nvme",
}
_ENDED_FAULTS: Final = frozenset({"InvalidState", "Timedout", "ManagedObjectNotFound"})


@contextmanager
def snapshot_export(
    session: VsphereSession, ledger: JobLedger, *, snapshot: SnapshotFacts
) -> Iterator[Mapping[int, NfcTicket]]:
    """Tickets by device key to read each frozen disk once, whole, from its start.

    Raises: CapabilityAbsent, VsphereFailed.
    """
    target = reference(vim.vm.Snapshot, snapshot.moref)
    with _export(
        session, ledger, target, "ExportSnapshot", vm=snapshot.vm, disks=snapshot.disks
    ) as found:
        yield found


@contextmanager
def vm_export(
    session: VsphereSession, ledger: JobLedger, *, vm: VmFacts
) -> Iterator[Mapping[int, NfcTicket]]:
    """The same for a VM that is powered off: how a restored VM is read back."""
    target = reference(vim.VirtualMachine, vm.moref)
    with _export(session, ledger, target, "ExportVm", vm=vm, disks=vm.disks) as found:
        yield found


@contextmanager
def _export(
    session: VsphereSession,
    ledger: JobLedger,
    target: Reference,
    method: str,
    *,
    vm: VmFacts,
    disks: Sequence[DiskFacts],
) -> Iterator[Mapping[int, NfcTicket]]:
    entry_id = ledger.intend(EntryKind.TRANSFER_LEASE, {"vm": vm.moref, "vm_name": vm.name})
    try:
        lease = lend(session, lambda: session.call(target, method), repeatable=True)
        ledger.ledger.made(entry_id, {"lease": moref_of(lease)})
        info = wait_until_ready(session, lease)
        tickets = tickets_of(session, info, disks, vm_moref=vm.moref, create=False)
        with renewed(session, lease, info):
            yield tickets
        end_lease(session, lease, "HttpNfcLeaseComplete")
    finally:
        give_back(session, ledger, entry_id)


def lend(session: VsphereSession, start: Callable[[], Reference], *, repeatable: bool) -> Reference:
    """Start a lease; waits while an older one (perhaps one of ours, its reply lost) covers the VM.

    ``repeatable``: after a lost reply it may be started again, and waits for the lost one to end.
    """
    waits = backoff_seconds(first=1.0, maximum=20.0, attempts=COVERED_ATTEMPTS_MAX)
    while True:
        try:
            return start()
        except HoldfastError as error:
            covered = faults.fault_name(error) in ("InvalidState", "TaskInProgress")
            wait = next(waits, None)
            lost = repeatable and isinstance(error, VsphereUnavailable)
            if wait is None or not (covered or lost):
                raise
            log.info("no lease yet; trying again", extra={"error": str(error)})
            if session.stop.wait(wait):
                raise


def state_of(session: VsphereSession, lease: Reference) -> str:
    """``initializing``, ``ready``, ``done`` or ``error``; empty when vSphere has forgotten it."""
    try:
        return str(properties.read_one(session, lease, ["state"]).get("state") or "")
    except SourceGone:
        return ""


def wait_until_ready(session: VsphereSession, lease: Reference) -> Foreign:
    """The lease's info once it is ready. Raises: its fault; TimedOut; SourceGone."""
    deadline = session.clock.monotonic_seconds() + READY_TIMEOUT_SECONDS
    while session.clock.monotonic_seconds() < deadline:
        values = properties.read_one(session, lease, ["state", "error"])
        state = str(values.get("state") or "")
        if state == "ready":
            info = properties.read_one(session, lease, ["info"]).get("info")
            if info is not None:
                return info
        if state == "error":
            raise faults.translated(values.get("error"), what="lending disks")
        if state == "done":
            raise VsphereFailed("a transfer lease ended before it was used")
        if session.stop.wait(POLL_SECONDS / 10 if state == "initializing" else POLL_SECONDS):
            break
    raise TimedOut("a transfer lease did not become ready", lease=moref_of(lease))


@contextmanager
def renewed(session: VsphereSession, lease: Reference, info: Foreign) -> Iterator[None]:
    """Keep a lease alive while the block runs. One that is lost ends its streams: the agent hears it."""
    finished = threading.Event()
    timeout = max(4.0, float(info.leaseTimeout or 300))
    every = min(RENEW_SECONDS_MAX, timeout / RENEWALS_PER_TIMEOUT)

    def renew() -> None:
        percent = 1
        while not finished.wait(every):
            # Progress renews the lease also when the percentage stays the same; transfers do not.
            try:
                session.call(lease, "HttpNfcLeaseProgress", percent=percent)
                percent = min(99, percent + 1)
            except HoldfastError as error:
                log.warning("a transfer lease was not renewed", extra={"error": str(error)})
                if faults.fault_name(error) in _ENDED_FAULTS:
                    return

    keeper = threading.Thread(target=renew, name="transfer lease", daemon=True)
    keeper.start()
    try:
        yield
    finally:
        finished.set()
        keeper.join(every + 5)


def tickets_of(
    session: VsphereSession,
    info: Foreign,
    disks: Sequence[DiskFacts],
    *,
    vm_moref: str,
    create: bool,
) -> dict[int, NfcTicket]:
    """The lease's URLs by device key. Raises: VsphereFailed when one cannot be matched."""
    _, around = read_vm_around(session, vm_moref)
    by_slot = {_slot_of(disk): disk for disk in disks if not disk.left_out_reason}
    tickets: dict[int, NfcTicket] = {}
    for each in info.deviceUrl or []:
        if each.disk is False:
            continue
        slot = _slot_in(str(each.importKey or ""), str(each.key or ""))
        disk = by_slot.get(slot) if slot else None
        if disk is not None:
            url, pin = _address(session, around, each)
            tickets[disk.device_key] = NfcTicket(url=url, certificate_sha256=pin, create=create)
    missing = [disk.label for disk in by_slot.values() if disk.device_key not in tickets]
    if missing:
        raise VsphereFailed("a lease has no address for a disk", disks=", ".join(missing))
    return tickets


def abort_own_lease(session: VsphereSession, entry: LedgerEntry) -> None:
    """End the lease of a ledger entry; one that ended (or was never made) is harmless.

    A lease whose reply was lost has no id here: it ends by its own timeout. Raises: VsphereFailed.
    """
    moref = entry.fact("lease")
    if moref:
        end_lease(session, reference(vim.HttpNfcLease, moref), "HttpNfcLeaseAbort")


def end_lease(session: VsphereSession, lease: Reference, method: str) -> None:
    """Complete or abort a lease; harmless when it has ended. Raises: VsphereFailed."""

    def end() -> None:
        try:
            session.call(lease, method)
        except SourceGone:
            return
        except VsphereFailed as error:
            if faults.fault_name(error) not in _ENDED_FAULTS:
                raise

    session.patiently(end)


def give_back(session: VsphereSession, ledger: JobLedger, entry_id: EntryId) -> None:
    """End the lease of an entry on the way out; what fails is a debt."""
    try:
        abort_own_lease(session, ledger.ledger.entry(entry_id))
    except HoldfastError as error:
        log.warning("a transfer lease could not be ended", extra={"error": str(error)})
        ledger.ledger.debt(entry_id, error.line())
    else:
        ledger.ledger.gone(entry_id)


def _address(session: VsphereSession, around: Surroundings, each: Foreign) -> tuple[str, str]:
    """The URL with a host that can be reached, and that host's pin: mostly the VM's own host."""
    parts = urlsplit(str(each.url))
    host = parts.hostname or "*"
    if "*" in host:
        # the server we talk to: it is pinned already
        address = session.address
        netloc = f"{address.host}:{address.port}"
        pin = pinning.fingerprint(address.certificate_sha256)
        return urlunsplit(parts._replace(netloc=netloc)), pin
    pin = _known_pin(around, host) or _known_pin(read_surroundings(session), host)
    if not pin and each.sslThumbprint:
        pin = pinning.host_certificate(
            host, parts.port or 443, thumbprint=str(each.sslThumbprint)
        ).sha256
    if not pin:
        raise VsphereFailed("vSphere does not say which certificate a host has", host=host)
    return str(each.url), pin


def _known_pin(around: Surroundings, host: str) -> str:
    known = [found.certificate_sha256 for found in around.hosts.values() if found.name == host]
    return known[0] if known else ""


def _slot_of(disk: DiskFacts) -> tuple[str, int, int]:
    family = disk.adapter if disk.adapter in ("ide", "sata", "nvme") else "scsi"
    return family, disk.bus_number, disk.unit_number


def _slot_in(*keys: str) -> tuple[str, int, int] | None:
    """The slot that a lease's key names: ``/vm-12/VirtualLsiLogicController0:1``."""
    for key in keys:
        match = _SLOT.search(key)
        if match is not None and match["kind"] in _FAMILIES:
            return _FAMILIES[match["kind"]], int(match["bus"]), int(match["unit"])
    return None
