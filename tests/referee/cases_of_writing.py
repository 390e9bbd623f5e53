"""Cases of the calls that make, change and remove virtual machines: see `case_table`."""

from __future__ import annotations

import contextlib

from pyVmomi import vim

from holdfast_controller.facts import VmFacts
from holdfast_controller.vsphere import (
    configuration,
    datastore_folders,
    hot_add,
    inventory,
    new_vm_spec,
    properties,
    virtual_machines,
)
from referee.case_table import Simulator, case, place_of_vm, plain_snapshot
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
    session = simulator.session
    made: list[VmFacts] = []
    with contextlib.suppress(GivenUp):
        _new_vm(simulator, "given up", made)
    assert made and made[0].disks and made[0].power_state == "poweredOff"
    machines = properties.read_everything(session, {vim.VirtualMachine: ("name",)})
    assert not [each for each in machines if each.values.get("name") == "given up"]


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


def _new_vm(simulator: Simulator, name: str, made: list[VmFacts], *, give_up: bool = True) -> None:
    session, original = simulator.session, simulator.vm(11)
    described = configuration.parse_configuration(plain_snapshot(session, original).configuration)
    ledger = job_ledger(simulator.folder)
    place = place_of_vm(session, original)
    datastore_folders.make_folder(session, place, name)
    new = new_vm_spec.new_vm_spec(
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
    with virtual_machines.new_vm(
        session,
        ledger,
        new=new,
        nonce=f"nonce of {name}",
        folder_moref=original.folder_moref,
        pool_moref=original.pool_moref,
        host_moref=original.host_moref,
        own_folders=[place.path(name)],
    ) as vm:
        made.append(vm)
        if give_up:
            raise GivenUp
    assert not ledger.open_entries(), "the ledger is not clean"
