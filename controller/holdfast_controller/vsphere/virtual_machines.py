"""New VMs from a point's configuration, and the few changes that a restore makes to VMs.

A new VM is in the ledger before it exists and carries our nonce, so that it is found again after any
crash. It is destroyed on every way out but success; never while it holds a disk that is not its own.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from pyVmomi import vim

from holdfast_common.errors import HoldfastError, Refused, SourceGone, VsphereFailed
from holdfast_controller.facts import DiskFacts, VmFacts
from holdfast_controller.ledger import (
    EntryId,
    EntryKind,
    EntryState,
    JobLedger,
    LedgerEntry,
    check_undo_order,
)
from holdfast_controller.vsphere import inventory, properties
from holdfast_controller.vsphere.effects import run_task, wait_until_idle
from holdfast_controller.vsphere.entity_names import plain_name
from holdfast_controller.vsphere.foreign import Foreign, Reference, reference
from holdfast_controller.vsphere.marked_vms import find_made_vm, vms_named
from holdfast_controller.vsphere.new_vm_spec import NewVmSpec
from holdfast_controller.vsphere.session import VsphereSession

log = logging.getLogger(__name__)

CHANGE_TIMEOUT_SECONDS: Final = 1800.0


@contextmanager
def new_vm(
    session: VsphereSession,
    ledger: JobLedger,
    *,
    new: NewVmSpec,
    nonce: str,
    folder_moref: str,
    pool_moref: str,
    host_moref: str,
    own_folders: Sequence[str],
    keep: bool = True,
) -> Iterator[VmFacts]:
    """A new VM that stays when the block ends well (and ``keep``), and is destroyed when it does not.

    ``own_folders``: the ``[datastore] folder`` paths that were made for it; only disks below them go
    with it. Raises: VsphereFailed and its kin.
    """
    name = new.name
    entry_id = ledger.intend(
        EntryKind.NEW_VM,
        {
            "vm_name": name,
            "nonce": nonce,
            "folder": folder_moref,
            "own_folders": json.dumps(list(own_folders)),
        },
    )
    try:
        folder = reference(vim.Folder, folder_moref)

        def landed() -> str | None:
            return find_made_vm(session, ledger.ledger.entry(entry_id))

        moref = run_task(
            session,
            folder,
            "CreateVM_Task",
            what=f"creating the VM {name}",
            landed=landed,
            timeout_seconds=CHANGE_TIMEOUT_SECONDS,
            config=new.spec,
            pool=reference(vim.ResourcePool, pool_moref),
            **({"host": reference(vim.HostSystem, host_moref)} if host_moref else {}),
        )
        ledger.ledger.made(entry_id, {"vm": moref})
        yield inventory.read_vm(session, moref)
    except BaseException:
        give_up_vm(session, ledger, entry_id)
        raise
    if keep:
        keep_vm(ledger, entry_id)
    else:
        give_up_vm(session, ledger, entry_id)


def keep_vm(ledger: JobLedger, entry_id: EntryId) -> None:
    """The VM of an entry stays, and with it, in the same act, the folders that were made for it.

    Were its folders kept a moment later, a crash in between would have them deleted below the VM.
    """
    folders = json.loads(ledger.ledger.entry(entry_id).fact("own_folders") or "[]")
    paths = {str(each).partition("] ")[2] for each in folders}
    kept = [
        each.entry_id
        for each in ledger.open_entries()
        if each.kind is EntryKind.FOLDER
        and each.state is EntryState.MADE
        and each.fact("path") in paths
    ]
    ledger.ledger.kept(entry_id, *kept)


def give_up_vm(session: VsphereSession, ledger: JobLedger, entry_id: EntryId) -> None:
    """Destroy the VM of an entry: gone, or a debt. Raises nothing of vSphere's."""
    entry = ledger.ledger.entry(entry_id)
    try:
        check_undo_order(ledger.ledger, entry)
        destroy_own_vm(session, entry)
    except HoldfastError as error:
        log.warning("a VM of ours could not be destroyed", extra={"error": str(error)})
        ledger.ledger.debt(entry_id, error.line())
    else:
        ledger.ledger.gone(entry_id)


def destroy_own_vm(session: VsphereSession, entry: LedgerEntry) -> None:
    """Destroy the VM of a ledger entry with its own disks; one that is gone is done.

    It is found wherever somebody moved it, and whatever its name is now. A disk that does not lie in
    a folder of ours is detached first, and stays.
    Raises: Refused when it runs, or may be somebody's copy of ours; VsphereFailed and its kin.
    """
    folder = reference(vim.Folder, entry.fact("folder"))
    wait_until_idle(session, folder, timeout_seconds=CHANGE_TIMEOUT_SECONDS)
    moref = find_made_vm(session, entry)
    if moref is None:
        return
    vm = inventory.read_vm(session, moref)
    if vm.power_state != "poweredOff":
        raise Refused("a VM of ours runs, so it is not destroyed", vm=vm.name)
    own = [str(each) + "/" for each in json.loads(entry.fact("own_folders") or "[]")]
    for disk in vm.disks:
        file = disk.tip.name if disk.tip else ""
        if not any(file.startswith(folder_path) for folder_path in own):
            detach_disk(session, vm, disk)
    machine = reference(vim.VirtualMachine, moref)

    def landed() -> bool | None:
        return None if _exists(session, machine) else True

    run_task(
        session,
        machine,
        "Destroy_Task",
        what=f"destroying the VM {vm.name}",
        landed=landed,
        timeout_seconds=CHANGE_TIMEOUT_SECONDS,
    )


def detach_disk(session: VsphereSession, vm: VmFacts, disk: DiskFacts) -> None:
    """Take a disk from a VM; its file stays. Harmless when it is not there any more."""
    machine = reference(vim.VirtualMachine, vm.moref)
    device = _device_with_file(session, vm.moref, disk.tip.name if disk.tip else "")
    if device is None:
        return
    # removing has no fileOperation, ever: "destroy" would delete the file
    spec = vim.vm.ConfigSpec(
        deviceChange=[vim.vm.device.VirtualDeviceSpec(operation="remove", device=device)]
    )

    def landed() -> bool | None:
        found = _device_with_file(session, vm.moref, disk.tip.name if disk.tip else "")
        return True if found is None else None

    reconfigure(
        session, machine, spec, what=f"detaching {disk.label} from {vm.name}", landed=landed
    )


def reconfigure(
    session: VsphereSession,
    machine: Reference,
    spec: Foreign,
    *,
    what: str,
    landed: Foreign,
) -> None:
    """One change of a VM, made once also when its reply is lost. Raises: VsphereFailed and its kin."""
    run_task(
        session,
        machine,
        "ReconfigVM_Task",
        what=what,
        landed=landed,
        timeout_seconds=CHANGE_TIMEOUT_SECONDS,
        spec=spec,
    )


def power_on(session: VsphereSession, vm: VmFacts) -> None:
    """Start a VM. Raises: VsphereFailed and its kin."""
    machine = reference(vim.VirtualMachine, vm.moref)

    def landed() -> bool | None:
        state = properties.read_one(session, machine, ["runtime.powerState"])
        return True if str(state.get("runtime.powerState")) == "poweredOn" else None

    run_task(
        session,
        machine,
        "PowerOnVM_Task",
        what=f"starting {vm.name}",
        landed=landed,
        timeout_seconds=CHANGE_TIMEOUT_SECONDS,
    )


def has_vm_named(session: VsphereSession, folder_moref: str, name: str) -> bool:
    """Whether a VM in a folder has this name now. Raises: VsphereFailed and its kin."""
    return bool(vms_named(session, folder_moref, name))


def network_names(session: VsphereSession, host_moref: str) -> dict[str, str]:
    """Networks that a host reaches: name -> moref."""
    host = reference(vim.HostSystem, host_moref)
    found = properties.read_one(session, host, ["network"]).get("network") or []
    named = properties.read_many(session, list(found), ["name"])
    return {plain_name(str(each.values.get("name"))): each.moref for each in named}


def _exists(session: VsphereSession, machine: Reference) -> bool:
    try:
        properties.read_one(session, machine, ["name"])
    except SourceGone:
        return False
    return True


def _device_with_file(session: VsphereSession, moref: str, file: str) -> Foreign | None:
    if not file:
        raise VsphereFailed("a disk without a file cannot be changed", vm=moref)
    machine = reference(vim.VirtualMachine, moref)
    values = properties.read_one(session, machine, ["config.hardware.device"])
    for each in values.get("config.hardware.device") or []:
        is_disk = isinstance(each, vim.vm.device.VirtualDisk)
        if is_disk and str(getattr(each.backing, "fileName", "")) == file:
            return each
    return None
