"""Cases of the calls that make, change and remove virtual machines: see `case_table`."""

from __future__ import annotations

import contextlib

from pyVmomi import vim

from holdfast_common.errors import VsphereFailed
from holdfast_controller.facts import DiskFacts, VmFacts
from holdfast_controller.vsphere import (
    configuration,
    datastore_folders,
    disk_swap,
    hot_add,
    import_leases,
    inventory,
    new_vm_spec,
    properties,
    virtual_machines,
)
from holdfast_controller.vsphere.foreign import reference
from referee.case_table import Simulator, SimulatorsFault, case, place_of_vm, plain_snapshot
from support.restored_disks import make_disk
from support.vsphere_sessions import job_ledger


class GivenUp(Exception):
    """A restore that fails on purpose."""


@case("ReconfigVM_Task")
def proxy(simulator: Simulator) -> None:
    """A disk is attached to a proxy, found by its slot and file, and detached; its file stays."""
    session, owner, helper = simulator.session, simulator.vm(9), simulator.vm(10)
    ledger = job_ledger(simulator.folder)
    disk = owner.disks[0]
    before = hot_add.attached_files(session, helper.moref)
    with hot_add.hot_added(
        session,
        ledger,
        proxy_instance_uuid=helper.instance_uuid,
        disks=[disk],
        owner=owner,
    ) as tickets:
        assert tickets[disk.device_key].disk_uuid == disk.backing_uuid
        assert len(hot_add.attached_files(session, helper.moref)) == len(before) + 1
    assert hot_add.attached_files(session, helper.moref) == before
    assert not ledger.open_entries(), "the ledger is not clean"
    assert disk.tip is not None
    place = place_of_vm(session, owner)
    assert datastore_folders.exists(session, place, disk.tip.path), "the disk's file is gone"


@case("CreateVM_Task", "Destroy_Task")
def given_up_vm(simulator: Simulator) -> None:
    """A new VM from a configuration; when its restore fails, nothing of it is left."""
    made: list[VmFacts] = []
    with contextlib.suppress(GivenUp):
        _new_vm(simulator, "given up", made)
    assert made and made[0].disks and made[0].power_state == "poweredOff"
    assert not _is_registered(simulator, "given up"), "the VM is left"


@case("CreateVM_Task", "PowerOnVM_Task")
def started_vm(simulator: Simulator) -> None:
    """A new VM that stays, with an identity of its own, and is started."""
    session = simulator.session
    made: list[VmFacts] = []
    _new_vm(simulator, "restored", made, give_up=False)
    original = simulator.vm(11)
    assert made[0].instance_uuid != original.instance_uuid
    assert made[0].bios_uuid != original.bios_uuid
    virtual_machines.power_on(session, made[0])
    assert inventory.read_vm(session, made[0].moref).power_state == "poweredOn"


@case("ImportVApp", "HttpNfcLeaseAbort")
def imported_vm(simulator: Simulator) -> None:
    """A VM to be filled over a lease; when nobody fills it, nothing of it is left."""
    session, original = simulator.session, simulator.vm(11)
    ledger = job_ledger(simulator.folder)
    name, unmatched = "imported", ""
    try:
        with import_leases.imported_vm(
            session,
            ledger,
            new=_spec_like(simulator, original, name),
            nonce=f"nonce of {name}",
            folder_moref=original.folder_moref,
            pool_moref=original.pool_moref,
            host_moref=original.host_moref,
            own_folders=[place_of_vm(session, original).path(name)],
        ) as imported:
            assert len(imported.tickets) == len(original.disks)
            raise GivenUp
    except GivenUp:
        pass
    except VsphereFailed as error:
        if "no address" not in error.message:
            raise
        unmatched = error.message
    assert not _is_registered(simulator, name), "the VM is left"
    assert not ledger.open_entries(), "the ledger is not clean"
    if unmatched:
        raise SimulatorsFault("a lease does not name a disk's controller and unit")


@case("MoveVirtualDisk_Task", "DeleteVirtualDisk_Task")
def exchanged_disk(simulator: Simulator) -> None:
    """A restored disk takes a disk's place and the old one goes; when it fails, the old one is back."""
    session, vm = simulator.session, simulator.vm(12)
    machine = reference(vim.VirtualMachine, vm.moref)
    session.wait_for_task(session.call(machine, "PowerOffVM_Task"), what="powering off")
    vm = inventory.read_vm(session, vm.moref)
    place, old = place_of_vm(session, vm), vm.disks[0]
    assert old.tip is not None
    datastore_folders.make_folder(session, place, "in place")

    def restored(name: str, replaced: DiskFacts) -> disk_swap.RestoredDisk:
        link = make_disk(session, place, f"in place/{name}.vmdk", old.capacity_bytes)
        return disk_swap.RestoredDisk(
            device_key=replaced.device_key,
            replaced_uuid=replaced.backing_uuid,
            link=link,
            capacity_bytes=replaced.capacity_bytes,
        )

    ledger = job_ledger(simulator.folder)
    with (
        contextlib.suppress(GivenUp),
        disk_swap.swapped_disks(
            session, ledger, vm=vm, restored=[restored("first", old)]
        ) as changed,
    ):
        assert changed.disks[0].tip != old.tip
        raise GivenUp
    back = inventory.read_vm(session, vm.moref)
    assert back.disks[0].tip == old.tip, "the old disk is not back"
    second = restored("second", back.disks[0])
    with disk_swap.swapped_disks(session, ledger, vm=back, restored=[second]):
        pass
    assert not ledger.open_entries(), "the ledger is not clean"
    now = inventory.read_vm(session, vm.moref).disks[0].tip
    assert now is not None and now != old.tip
    assert datastore_folders.exists(session, place, now.path)
    assert not datastore_folders.exists(session, place, old.tip.path), "the old disk is left"


def _is_registered(simulator: Simulator, name: str) -> bool:
    machines: dict[type, tuple[str, ...]] = {vim.VirtualMachine: ("name",)}
    found = properties.read_everything(simulator.session, machines)
    return any(each.values.get("name") == name for each in found)


def _spec_like(simulator: Simulator, original: VmFacts, name: str) -> new_vm_spec.NewVmSpec:
    """A VM like another one, in a folder that is made for it."""
    session = simulator.session
    described = configuration.parse_configuration(plain_snapshot(session, original).configuration)
    place = place_of_vm(session, original)
    datastore_folders.make_folder(session, place, name)
    return new_vm_spec.new_vm_spec(
        described,
        name=name,
        vmx_file=place.path(f"{name}/{name}.vmx"),
        nonce=f"nonce of {name}",
        disks=[
            new_vm_spec.NewDisk(
                device_key=disk.device_key,
                file=place.path(f"{name}/disk-{disk.device_key}.vmdk"),
                capacity_bytes=disk.capacity_bytes,
                create=True,
            )
            for disk in original.disks
        ],
        networks=virtual_machines.network_names(session, original.host_moref),
    )


def _new_vm(simulator: Simulator, name: str, made: list[VmFacts], *, give_up: bool = True) -> None:
    session, original = simulator.session, simulator.vm(11)
    ledger = job_ledger(simulator.folder)
    with virtual_machines.new_vm(
        session,
        ledger,
        new=_spec_like(simulator, original, name),
        nonce=f"nonce of {name}",
        folder_moref=original.folder_moref,
        pool_moref=original.pool_moref,
        host_moref=original.host_moref,
        own_folders=[place_of_vm(session, original).path(name)],
    ) as vm:
        made.append(vm)
        if give_up:
            raise GivenUp
    assert not ledger.open_entries(), "the ledger is not clean"
