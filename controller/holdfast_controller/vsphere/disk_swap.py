"""In place: restored disks take the places of a VM's present ones, or everything is as it was.

The present disks are kept aside until the restored ones were read back. Every step is small and can
be repeated: which step was reached is seen from the VM and the datastore, never only remembered.

    intended   restored files lie in a folder of ours; the VM runs on its own disks
    moved      restored files lie beside the VM's own
    swapped    one Reconfigure, whole or not at all: the VM has the restored disks
    committed  written down before anything old is deleted: from here on only forward
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Final

from pyVmomi import vim

from holdfast_common.errors import HoldfastError, Refused, SourceGone, VsphereFailed
from holdfast_common.identity import new_ulid
from holdfast_controller.facts import ChainLink, DiskFacts, VmFacts
from holdfast_controller.ledger import EntryId, EntryKind, JobLedger, LedgerEntry
from holdfast_controller.vsphere import inventory, properties
from holdfast_controller.vsphere.datastore_files import DatastorePlace, place_of, read_place
from holdfast_controller.vsphere.datastore_folders import exists
from holdfast_controller.vsphere.effects import run_task, wait_until_idle
from holdfast_controller.vsphere.foreign import Foreign, reference
from holdfast_controller.vsphere.lost_vms import check_destroyed, lost_vm_facts
from holdfast_controller.vsphere.session import VsphereSession

log = logging.getLogger(__name__)

Device = vim.vm.device
STEP_TIMEOUT_SECONDS: Final = 3600.0  # a move between datastores copies
COMMITTED: Final = "committed"


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoredDisk:
    """A restored disk that nobody has attached: ``link`` is its file, in a folder of ours.

    It takes the place of the VM's disk with this device key and this uuid of its backing.
    """

    device_key: int
    replaced_uuid: str
    link: ChainLink
    capacity_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Swap:
    """One disk's part, as the ledger keeps it. Names are ``[datastore] path``."""

    controller_key: int
    unit_number: int
    datastore: str
    present: str
    present_bytes: int
    restored: str
    target: str
    target_bytes: int
    present_uuid: str = ""  # empty: it shows none


def refuse_unless_possible(vm: VmFacts) -> None:
    """Whether disks of a VM may be replaced at all now. Raises: Refused with every reason."""
    problems = []
    if vm.power_state != "poweredOff":
        problems.append("the VM is running: shut it down first")
    if vm.snapshots:
        problems.append("the VM has snapshots, which would stand on disks that are gone")
    if vm.consolidation_needed:
        problems.append("a consolidation of its disks is pending")
    if (
        not vm.snapshots and not vm.consolidation_needed
    ):  # their chains are longer, and told already
        problems += [
            f"{disk.label} stands on another disk: a linked clone's, or one never consolidated"
            for disk in vm.protected_disks
            if len(disk.chain) != 1
        ]
    if problems:
        raise Refused("; ".join(problems), vm=vm.name)


@contextmanager
def swapped_disks(
    session: VsphereSession,
    ledger: JobLedger,
    *,
    vm: VmFacts,
    restored: Sequence[RestoredDisk],
) -> Iterator[VmFacts]:
    """The VM with the restored disks in place, to be read back in the block.

    When the block ends well they stay and the old ones are deleted; when not, the VM has its old
    disks again and the restored ones are deleted. Raises: Refused, VsphereFailed and its kin.
    """
    refuse_unless_possible(vm)
    swaps = _planned(vm, restored)
    entry_id = ledger.intend(
        EntryKind.DISK_SWAP,
        {
            "vm": vm.moref,
            "vm_name": vm.name,
            "instance_uuid": vm.instance_uuid,
            "disks": json.dumps([asdict(swap) for swap in swaps]),
            **lost_vm_facts(vm),
        },
    )
    try:
        around = inventory.read_surroundings(session)
        for swap in swaps:
            _move(session, around, swap)
        _exchange(session, vm.moref, swaps, forward=True)
        ledger.ledger.made(entry_id, {})
        yield inventory.read_vm(session, vm.moref)
    except BaseException:
        _settle(session, ledger, entry_id)
        raise
    # The decision is durable before the first old disk goes.
    ledger.ledger.note(entry_id, {"phase": COMMITTED})
    _settle(session, ledger, entry_id)


def is_committed(entry: LedgerEntry) -> bool:
    """Whether the restored disks were read back in their places, and stay."""
    return entry.fact("phase") == COMMITTED


def settle_swap(session: VsphereSession, entry: LedgerEntry) -> None:
    """Finish a swap in the direction that its entry decided: committed, forward; else back.

    Harmless when it is done. Raises: VsphereFailed and its kin; SourceGone when the VM was destroyed.
    """
    forward = is_committed(entry)
    swaps = [_Swap(**each) for each in json.loads(entry.fact("disks"))]
    try:
        moref = _present_moref(session, entry)
    except SourceGone:
        check_destroyed(
            session, entry, vm_name=entry.fact("vm_name"), left="disks that were being exchanged"
        )
        raise
    machine = reference(vim.VirtualMachine, moref)
    wait_until_idle(session, machine, timeout_seconds=STEP_TIMEOUT_SECONDS)
    _exchange(session, moref, swaps, forward=forward)
    for swap in swaps:
        # beside each other on one datastore: the restored disk was moved to the present one
        _delete_disk(session, moref, swap.datastore, swap.present if forward else swap.target)


def _planned(vm: VmFacts, restored: Sequence[RestoredDisk]) -> list[_Swap]:
    present = {disk.device_key: disk for disk in vm.disks}
    swaps = []
    for disk in restored:
        old = present.get(disk.device_key)
        if old is None or old.tip is None:
            raise Refused(
                "the VM no longer has a disk that the point would replace",
                device_key=disk.device_key,
                advice="restore it as a new VM instead",
            )
        if old.backing_uuid != disk.replaced_uuid:
            raise Refused(
                "another disk has come into the place of the one to be replaced",
                device_key=disk.device_key,
                file=old.tip.name,
            )
        if old.unprotected_reason:
            raise Refused(
                "a disk cannot be replaced", disk=old.label, reason=old.unprotected_reason
            )
        swaps.append(_swap(old, old.tip, disk))
    if not swaps:
        raise Refused("there is no disk to replace", vm=vm.name)
    return swaps


def _swap(old: DiskFacts, present: ChainLink, disk: RestoredDisk) -> _Swap:
    folder, _, name = present.path.rpartition("/")
    stem = name.removesuffix(".vmdk").partition("-restored-")[0]
    target = f"{folder}/{stem}-restored-{new_ulid().lower()}.vmdk".lstrip("/")
    return _Swap(
        controller_key=old.controller_key,
        unit_number=old.unit_number,
        datastore=present.datastore_moref,
        present=present.name,
        present_bytes=old.capacity_bytes,
        present_uuid=old.backing_uuid,
        restored=disk.link.name,
        target=f"[{present.datastore_name}] {target}",
        target_bytes=disk.capacity_bytes,
    )


def _move(session: VsphereSession, around: inventory.Surroundings, swap: _Swap) -> None:
    """Move a restored disk beside the VM's own. Nobody has it attached."""
    target = place_of(around, swap.datastore)
    source_name, _ = _split(swap.restored)
    source = _place_named(around, source_name, swap)

    def landed() -> bool | None:
        return True if _is_there(session, target, swap.target) else None

    run_task(
        session,
        session.content().virtualDiskManager,
        "MoveVirtualDisk_Task",
        what=f"moving {swap.restored}",
        landed=landed,
        busy=reference(vim.Datastore, target.moref),
        timeout_seconds=STEP_TIMEOUT_SECONDS,
        sourceName=swap.restored,
        sourceDatacenter=_datacenter(source),
        destName=swap.target,
        destDatacenter=_datacenter(target),
        force=False,
    )


def _exchange(
    session: VsphereSession, vm_moref: str, swaps: Sequence[_Swap], *, forward: bool
) -> None:
    """One Reconfigure that puts every disk of one side in place; nothing when they are there."""
    devices = _devices(session, vm_moref)
    changes: list[Foreign] = []
    for swap in swaps:
        wanted, other = (swap.target, swap.present) if forward else (swap.present, swap.target)
        device = _disk_at(devices, swap)
        file = "" if device is None else str(device.backing.fileName)
        if file == wanted:
            continue
        if device is not None and (file != other or (forward and not _is_present(device, swap))):
            raise VsphereFailed("another disk is in the place of ours", vm=vm_moref, file=file)
        if device is not None:
            # no fileOperation: the disk that goes out of the VM stays on its datastore
            changes.append(Device.VirtualDeviceSpec(operation="remove", device=device))
        changes.append(_added(swap, wanted, forward=forward))
    if not changes:
        return
    _refuse_running(session, vm_moref)

    def landed() -> bool | None:
        now = _devices(session, vm_moref)
        for swap in swaps:
            device = _disk_at(now, swap)
            wanted = swap.target if forward else swap.present
            if device is None or str(device.backing.fileName) != wanted:
                return None
        return True

    run_task(
        session,
        reference(vim.VirtualMachine, vm_moref),
        "ReconfigVM_Task",
        what="exchanging the VM's disks",
        landed=landed,
        timeout_seconds=STEP_TIMEOUT_SECONDS,
        spec=vim.vm.ConfigSpec(deviceChange=changes),
    )


def _added(swap: _Swap, file: str, *, forward: bool) -> Foreign:
    capacity = swap.target_bytes if forward else swap.present_bytes
    device = Device.VirtualDisk(
        key=-1 - swap.unit_number - 100 * swap.controller_key,
        controllerKey=swap.controller_key,
        unitNumber=swap.unit_number,
        capacityInKB=capacity // 1024,
        capacityInBytes=capacity,
        backing=Device.VirtualDisk.FlatVer2BackingInfo(
            fileName=file,
            datastore=reference(vim.Datastore, swap.datastore) if swap.datastore else None,
            diskMode="persistent",
        ),
    )
    return Device.VirtualDeviceSpec(operation="add", device=device)


def _delete_disk(session: VsphereSession, vm_moref: str, datastore: str, name: str) -> None:
    """Delete one disk by its name, never while the VM has it. Harmless when it is gone."""
    if name in _files_in_use(session, vm_moref):
        raise VsphereFailed("a disk that the VM has is not deleted", vm=vm_moref, file=name)
    place = read_place(session, datastore)
    if not _is_there(session, place, name):
        return

    def landed() -> bool | None:
        return None if _is_there(session, place, name) else True

    run_task(
        session,
        session.content().virtualDiskManager,
        "DeleteVirtualDisk_Task",
        what=f"deleting {name}",
        landed=landed,
        busy=reference(vim.Datastore, place.moref),
        timeout_seconds=STEP_TIMEOUT_SECONDS,
        name=name,
        datacenter=_datacenter(place),
    )


def _settle(session: VsphereSession, ledger: JobLedger, entry_id: EntryId) -> None:
    entry = ledger.ledger.entry(entry_id)
    try:
        settle_swap(session, entry)
    except HoldfastError as error:
        log.warning("an exchange of disks is not finished", extra={"error": str(error)})
        ledger.ledger.debt(entry_id, error.line())
    else:
        ledger.ledger.gone(entry_id)


def _present_moref(session: VsphereSession, entry: LedgerEntry) -> str:
    return inventory.find_moref(session, instance_uuid=entry.fact("instance_uuid"))


def _devices(session: VsphereSession, vm_moref: str) -> Sequence[Foreign]:
    machine = reference(vim.VirtualMachine, vm_moref)
    values = properties.read_one(session, machine, ["config.hardware.device"])
    found: Sequence[Foreign] = values.get("config.hardware.device") or []
    if not found:
        raise VsphereFailed("a VM shows no devices", vm=vm_moref)
    return found


def _disk_at(devices: Sequence[Foreign], swap: _Swap) -> Foreign:
    for device in devices:
        if (
            isinstance(device, Device.VirtualDisk)
            and device.controllerKey == swap.controller_key
            and device.unitNumber == swap.unit_number
        ):
            return device
    return None


def _is_present(device: Foreign, swap: _Swap) -> bool:
    """Whether a device is the disk that was there when the exchange was planned."""
    return (
        not swap.present_uuid or str(getattr(device.backing, "uuid", "") or "") == swap.present_uuid
    )


def _refuse_running(session: VsphereSession, vm_moref: str) -> None:
    """A running guest must not lose its disks, in neither direction. Raises: Refused."""
    machine = reference(vim.VirtualMachine, vm_moref)
    state = properties.read_one(session, machine, ["runtime.powerState"])
    if str(state.get("runtime.powerState")) != "poweredOff":
        raise Refused(
            "the VM was started while its disks are being exchanged",
            vm=vm_moref,
            advice="shut it down; the exchange is then finished, or taken back, by itself",
        )


def _files_in_use(session: VsphereSession, vm_moref: str) -> set[str]:
    """Every link of every disk of a VM, its snapshots included."""
    machine = reference(vim.VirtualMachine, vm_moref)
    values = properties.read_one(session, machine, ["snapshot"])
    nodes = inventory.snapshot_nodes(values.get("snapshot"))
    found = list(_devices(session, vm_moref))
    for node in nodes:
        snapshot = reference(vim.vm.Snapshot, node.moref)
        shown = properties.read_one(session, snapshot, ["config.hardware.device"])
        found += shown.get("config.hardware.device") or []
    names: set[str] = set()
    for device in found:
        backing = device.backing
        while backing is not None:
            names.add(str(getattr(backing, "fileName", "") or ""))
            backing = getattr(backing, "parent", None)
    return names


def _is_there(session: VsphereSession, place: DatastorePlace, name: str) -> bool:
    return exists(session, place, _split(name)[1])


def _split(name: str) -> tuple[str, str]:
    datastore, _, path = name.removeprefix("[").partition("] ")
    return datastore, path


def _place_named(around: inventory.Surroundings, name: str, swap: _Swap) -> DatastorePlace:
    link = around.names.link(f"[{name}] x")
    return place_of(around, link.datastore_moref or swap.datastore)


def _datacenter(place: DatastorePlace) -> Foreign:
    return reference(vim.Datacenter, place.datacenter_moref) if place.datacenter_moref else None
