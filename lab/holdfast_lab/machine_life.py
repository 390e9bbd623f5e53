"""VMs come and go: CreateVM, RegisterVM, UnregisterVM, Destroy; and folders, names, templates."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from pyVmomi import vim

from holdfast_lab.datastores import Datastore
from holdfast_lab.disk_backings import destroy_files
from holdfast_lab.disk_devices import change_devices
from holdfast_lab.disk_locks import locked, uses_of
from holdfast_lab.faults import SoapFault, file_not_found, invalid_argument, not_supported
from holdfast_lab.host_devices import flip_if_told
from holdfast_lab.hosts import Host, ResourcePool
from holdfast_lab.inventory import Folder
from holdfast_lab.lab import Lab
from holdfast_lab.lab_object import ManagedEntity, file_stem
from holdfast_lab.machine import POWERED_OFF, SUSPENDED, Machine, MachineSettings
from holdfast_lab.machine_build import new_machine
from holdfast_lab.method_registry import Call, soap_method
from holdfast_lab.power import check_no_transfer, check_state
from holdfast_lab.privileges import check_privilege
from holdfast_lab.reconfigure import (
    changed_settings,
    check_sibling_names,
    given_name,
    switch_tracking,
)
from holdfast_lab.vmx_file import load_vmx
from holdfast_lab.vmx_register import devices_from, settings_from
from holdfast_lab.wire_types import WireObject


@soap_method("CreateVM_Task")
def create_task(call: Call) -> vim.Task:
    lab = call.lab
    folder = lab.get(call.this, Folder)
    spec = call.arguments.required("config", vim.vm.ConfigSpec)
    pool = lab.get(call.arguments.required("pool", vim.ResourcePool), ResourcePool)
    host = chosen_host(call, pool)
    name = given_name(str(spec.name or ""))
    folder.check_name_is_free(name)
    return lab.tasks.start(
        folder,
        "Folder.createVm",
        lambda _task: create_machine(folder, spec, pool=pool, host=host).ref,
        session=call.session,
        exclusive=False,
        subject=name,
    )


def chosen_host(call: Call, pool: ResourcePool) -> Host:
    """The host that a call names, or the pool's first one. Raises: SoapFault."""
    wanted = call.arguments.optional("host", vim.HostSystem)
    hosts = pool.compute_resource().hosts
    if wanted is None:
        return hosts[0]
    host = call.lab.get(wanted, Host)
    if host not in hosts:
        raise invalid_argument("host", "the host does not belong to the pool's compute resource")
    return host


def create_machine(folder: Folder, spec: WireObject, *, pool: ResourcePool, host: Host) -> Machine:
    """Make a VM from a specification. Without ``Lab.lock``. Raises: SoapFault; nothing is left."""
    lab = folder.lab
    name = given_name(str(spec.name or ""))
    with lab.lock:
        if spec.files is None or not spec.files.vmPathName:
            raise invalid_argument("config.files.vmPathName")
        home, vmx = place_of_new_vmx(lab, str(spec.files.vmPathName), name)
        home.check_space(1 << 20)
        directory_was_there = vmx.parent.exists()
        settings = changed_settings(MachineSettings(guest_id="otherGuest"), spec)
        if instance_uuid_used(lab, settings.instance_uuid):
            settings.instance_uuid = str(uuid.uuid4())
        machine = new_machine(
            lab,
            name=name,
            folder=folder,
            home=home,
            vmx=vmx,
            host=host,
            resource_pool=pool,
            settings=settings,
        )
    try:
        change_devices(machine, list(spec.deviceChange))
        if settings.change_tracking:
            switch_tracking(machine)
        with lab.lock:
            machine.config_changed()
    except BaseException:
        with lab.lock:
            take_off_inventory(machine)
            remove_own_files(machine, with_directory=not directory_was_there)
        raise
    return machine


def place_of_new_vmx(lab: Lab, path: str, name: str) -> tuple[Datastore, Path]:
    """Where a new VM's .vmx goes: ``[ds]``, ``[ds] folder/`` or ``[ds] folder/x.vmx``.

    Needs the lock. Raises: SoapFault (FileAlreadyExists).
    """
    home, local = lab.resolve(path)
    if local.suffix == ".vmx":
        vmx = local
    elif local == home.root:
        plain = file_stem(name)
        number = 0
        while (home.root / (f"{plain}_{number}" if number else plain)).exists():
            number += 1
        vmx = home.root / (f"{plain}_{number}" if number else plain) / f"{plain}.vmx"
    else:
        vmx = local / f"{file_stem(name)}.vmx"
    if vmx.exists():
        shown = lab.datastore_path(vmx)
        raise SoapFault(vim.fault.FileAlreadyExists(file=shown), f"File {shown} already exists")
    return home, vmx


def instance_uuid_used(lab: Lab, instance_uuid: str) -> bool:
    """Whether a VM has this instance uuid."""
    return any(each.instance_uuid == instance_uuid for each in lab.machines())


@soap_method("RegisterVM_Task")
def register_task(call: Call) -> vim.Task:
    lab = call.lab
    folder = lab.get(call.this, Folder)
    path = call.arguments.text("path")
    name = call.arguments.text("name")
    if name:
        name = given_name(name)
        folder.check_name_is_free(name)
    given = call.arguments.optional("pool", vim.ResourcePool)
    pool = lab.get(given, ResourcePool) if given is not None else lab.every(ResourcePool)[0]
    host = chosen_host(call, pool)
    as_template = call.arguments.flag("asTemplate", default=False)
    return lab.tasks.start(
        folder,
        "Folder.registerVm",
        lambda _task: (
            register_machine(
                folder, path, name=name, pool=pool, host=host, as_template=as_template
            ).ref
        ),
        session=call.session,
        exclusive=False,
        subject=name or path,
    )


def register_machine(
    folder: Folder, path: str, *, name: str, pool: ResourcePool, host: Host, as_template: bool
) -> Machine:
    """Take a VM's files into the inventory. Without ``Lab.lock``. Raises: SoapFault."""
    lab = folder.lab
    with lab.lock:
        home, vmx = lab.resolve(path)
        if not vmx.is_file():
            raise file_not_found(path)
        for each in lab.machines():
            if each.vmx == vmx:
                raise SoapFault(
                    vim.fault.AlreadyExists(name=each.name), f"{path} is registered already"
                )
        values = load_vmx(vmx)
        settings = settings_from(values)
        settings.template = as_template
        if instance_uuid_used(lab, settings.instance_uuid):
            settings.instance_uuid = str(uuid.uuid4())
    devices = devices_from(lab, vmx.parent, values)
    shown = name or next((values[key] for key in values if key.lower() == "displayname"), vmx.stem)
    with lab.lock:
        machine = new_machine(
            lab,
            name=shown,
            folder=folder,
            home=home,
            vmx=vmx,
            host=host,
            resource_pool=pool,
            settings=settings,
        )
        machine.devices = devices
        machine.config_changed()
    for device in machine.disks():
        facts = {
            "vm": machine.name,
            "disk": device.disk.base_name,
            "datastore": lab.datastore_name_of(device.descriptor),
            "direction": "attach",
        }
        flip_if_told(lab, device, facts)
    return machine


@soap_method("UnregisterVM")
def unregister(call: Call) -> None:
    machine = call.lab.get(call.this, Machine)
    call.lab.tasks.check_not_busy(machine)
    check_state(machine, POWERED_OFF, SUSPENDED)
    check_no_transfer(machine)
    take_off_inventory(machine)


def take_off_inventory(machine: Machine) -> None:
    """Forget a VM; its files stay. Needs the lock."""
    if machine.parent is not None:
        machine.parent.detach_child(machine)
    machine.lab.remove(machine)


@soap_method("Destroy_Task")
def destroy_task(call: Call) -> vim.Task:
    lab = call.lab
    entity = lab.get(call.this, ManagedEntity)
    body: Callable[[object], None]
    if isinstance(entity, Machine):
        machine = entity
        check_privilege(call, call.this, "VirtualMachine.Inventory.Delete")
        check_no_transfer(machine)

        def body(_task: object) -> None:
            destroy_machine(machine)

    elif isinstance(entity, Folder) and isinstance(entity.parent, Folder):
        folder = entity

        def body(_task: object) -> None:
            destroy_folder(folder)

    else:
        raise not_supported(f"{entity.name} cannot be destroyed")
    name = f"{entity.kind.__name__.rsplit('.', 1)[-1]}.destroy"
    return lab.tasks.start(entity, name, body, session=call.session)


def destroy_machine(machine: Machine) -> None:
    """Delete a VM with every disk that it has attached, whoever else needs it.

    Without ``Lab.lock``. Raises: SoapFault (InvalidPowerState, FileLocked).
    """
    lab = machine.lab
    with lab.lock:
        check_state(machine, POWERED_OFF, SUSPENDED)
        check_no_transfer(machine)
        for device in machine.disks():
            for link in (device.link,) if device.link is not None else device.disk.all_links:
                if uses_of(lab, device.disk, link):
                    raise locked(lab, link, "it is in use")
    for device in machine.disks():
        if device.descriptor.exists():
            device.disk.settle_truth()  # a later comparison may still ask what the disk held
        destroy_files(lab, device)
    with lab.lock:
        take_off_inventory(machine)
        remove_own_files(machine, with_directory=True)
    lab.calls.event("destroyed", vm=machine.name)


def remove_own_files(machine: Machine, *, with_directory: bool) -> None:
    """Delete .vmx, .nvram, logs and snapshot lists; the folder when nothing else is in it."""
    for path in (machine.vmx, machine.nvram, machine.vmx.with_suffix(".vmsd")):
        path.unlink(missing_ok=True)
    for pattern in (f"{machine.vmx.stem}-Snapshot*", "vmware*.log"):
        for path in machine.directory.glob(pattern):
            path.unlink(missing_ok=True)
    if with_directory and machine.directory != machine.home.root:
        with suppress(OSError):
            machine.directory.rmdir()


def destroy_folder(folder: Folder) -> None:
    """Delete a folder with all VMs in it. Without ``Lab.lock``. Raises: SoapFault."""
    for each in folder.children():
        if isinstance(each, Machine):
            destroy_machine(each)
        elif isinstance(each, Folder):
            destroy_folder(each)
    with folder.lab.lock:
        if folder.parent is not None:
            folder.parent.detach_child(folder)
        folder.lab.remove(folder)


@soap_method("CreateFolder")
def create_folder(call: Call) -> WireObject:
    parent = call.lab.get(call.this, Folder)
    name = given_name(call.arguments.text("name"))
    parent.check_name_is_free(name)
    made = Folder(
        call.lab, call.lab.new_id("group-v"), name=name, parent=parent, types=list(parent.types)
    )
    call.lab.add(made)
    parent.attach_child(made)
    return made.ref


@soap_method("Rename_Task")
def rename_task(call: Call) -> vim.Task:
    entity = call.lab.get(call.this, ManagedEntity)
    name = given_name(call.arguments.text("newName"))

    def body(_task: object) -> None:
        with call.lab.lock:
            if isinstance(entity, Machine):
                check_sibling_names(entity, name)
            entity.name = name
            if isinstance(entity, Machine):
                entity.config_changed()
            call.lab.touch(entity)

    return call.lab.tasks.start(entity, "ManagedEntity.rename", body, session=call.session)


@soap_method("MoveIntoFolder_Task")
def move_into_folder_task(call: Call) -> vim.Task:
    folder = call.lab.get(call.this, Folder)
    moved = [
        call.lab.get(each, ManagedEntity)
        for each in call.arguments.sequence("list", vim.ManagedEntity)
    ]

    def body(_task: object) -> None:
        with call.lab.lock:
            for each in moved:
                folder.check_name_is_free(each.name)
                if each.parent is not None:
                    each.parent.detach_child(each)
                folder.attach_child(each)

    return call.lab.tasks.start(folder, "Folder.moveInto", body, session=call.session)


@soap_method("MarkAsTemplate")
def mark_as_template(call: Call) -> None:
    machine = call.lab.get(call.this, Machine)
    check_state(machine, POWERED_OFF)
    machine.settings.template = True
    machine.config_changed()


@soap_method("MarkAsVirtualMachine")
def mark_as_machine(call: Call) -> None:
    machine = call.lab.get(call.this, Machine)
    pool = call.lab.get(call.arguments.required("pool", vim.ResourcePool), ResourcePool)
    machine.host = chosen_host(call, pool)
    machine.resource_pool = pool
    machine.settings.template = False
    machine.config_changed()


@soap_method("RefreshStorageInfo")
def refresh_storage(call: Call) -> None:
    """Measure the VM's files anew: done each time they are read, so there is nothing to do."""
    call.lab.get(call.this, Machine)
