"""ReconfigVM: a VM's settings; its devices are in ``disk_devices``.

A change has its whole effect or none: everything is checked before the first setting changes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from pyVmomi import vim

from holdfast_lab import other_settings
from holdfast_lab.disk_devices import change_devices
from holdfast_lab.faults import SoapFault, invalid_argument
from holdfast_lab.lab_object import escaped_name, plain_name
from holdfast_lab.machine import POWERED_OFF, Machine, MachineSettings
from holdfast_lab.method_registry import Call, soap_method
from holdfast_lab.power import check_no_transfer, check_state
from holdfast_lab.privileges import check_reconfigure
from holdfast_lab.wire_types import WireObject

UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
NAME_CHARACTERS_MAX = 80
TRACKING_VERSION_MIN = 7  # hardware version from which changed blocks can be tracked
# properties of a specification that a running VM cannot take
COLD_ONLY = (
    "numCPUs",
    "memoryMB",
    "firmware",
    "uuid",
    "version",
    "guestId",
    *other_settings.PLAIN,
)


@soap_method("ReconfigVM_Task")
def reconfigure_task(call: Call) -> vim.Task:
    machine = call.lab.get(call.this, Machine)
    spec = call.arguments.required("spec", vim.vm.ConfigSpec)
    check_reconfigure(call, spec)
    return call.lab.tasks.start(
        machine,
        "VirtualMachine.reconfigure",
        lambda _task: reconfigure(machine, spec),
        session=call.session,
    )


def reconfigure(machine: Machine, spec: WireObject) -> None:
    """Change settings and devices. Without ``Lab.lock``. Raises: SoapFault."""
    lab = machine.lab
    with lab.lock:
        check_no_transfer(machine)
        check_spec(machine, spec)
        changed = changed_settings(machine.settings, spec)
    change_devices(machine, list(spec.deviceChange))
    with lab.lock:
        tracked_before = machine.settings.change_tracking
        machine.settings = changed
        if spec.name is not None and given_name(spec.name) != machine.name:
            machine.name = given_name(spec.name)
    if changed.change_tracking != tracked_before:
        switch_tracking(machine)
    with lab.lock:
        machine.config_changed()


def check_spec(machine: Machine, spec: WireObject) -> None:
    """What a specification may not ask of this VM. Needs the lock. Raises: SoapFault."""
    if spec.changeVersion:
        present = f"{machine.settings.modified.isoformat()}/{machine.change_version}"
        if spec.changeVersion != present:
            raise SoapFault(
                vim.fault.ConcurrentAccess(), "The configuration was changed by somebody else."
            )
    if spec.name is not None:
        name = given_name(spec.name)
        if name != machine.name:
            check_sibling_names(machine, name)
    if any(getattr(spec, name) is not None for name in COLD_ONLY):
        check_state(machine, POWERED_OFF)
    for name in ("uuid", "instanceUuid"):
        value = getattr(spec, name)
        if value is not None and not UUID.fullmatch(str(value).lower()):
            raise invalid_argument(f"spec.{name}", f"{value!r} is no uuid")
    if spec.instanceUuid is not None and instance_uuid_taken(machine, spec.instanceUuid):
        raise invalid_argument("spec.instanceUuid", "another virtual machine has this uuid")
    if spec.changeTrackingEnabled:
        version = str(spec.version or machine.settings.hardware_version)
        if int(version.removeprefix("vmx-")) < TRACKING_VERSION_MIN:
            raise SoapFault(
                vim.fault.InvalidVmConfig(property="changeTrackingEnabled"),
                "Changed block tracking needs hardware version 7.",
            )
    if spec.firmware is not None and spec.firmware not in ("bios", "efi"):
        raise invalid_argument("spec.firmware")


def given_name(text: str) -> str:
    """The name that a client gives, its escape sequences resolved. Raises: SoapFault (InvalidName)."""
    name = plain_name(text)
    too_long = len(escaped_name(name)) > NAME_CHARACTERS_MAX
    if not name.strip() or too_long or not name.isprintable():
        raise SoapFault(vim.fault.InvalidName(name=text), f"The name '{text}' is not valid.")
    return name


def check_sibling_names(machine: Machine, name: str) -> None:
    """Raises: SoapFault (DuplicateName)."""
    if machine.parent is None:
        return
    for each in machine.parent.children():
        if each is not machine and each.name == name:
            raise SoapFault(
                vim.fault.DuplicateName(name=name, object=each.ref),
                f"The name '{name}' already exists.",
            )


def instance_uuid_taken(machine: Machine | None, instance_uuid: str, *others: Machine) -> bool:
    """Whether another VM of the lab has this instance uuid already."""
    machines = machine.lab.machines() if machine is not None else list(others)
    return any(
        each is not machine and each.instance_uuid == instance_uuid.lower() for each in machines
    )


SETTERS: Mapping[str, Callable[[MachineSettings, WireObject], None]] = {
    "guestId": lambda settings, value: setattr(settings, "guest_id", str(value)),
    "annotation": lambda settings, value: setattr(settings, "annotation", str(value)),
    "numCPUs": lambda settings, value: setattr(settings, "cpu_count", int(value)),
    "numCoresPerSocket": lambda settings, value: setattr(settings, "cores_per_socket", int(value)),
    "memoryMB": lambda settings, value: setattr(settings, "memory_mib", int(value)),
    "version": lambda settings, value: setattr(settings, "hardware_version", str(value)),
    "firmware": lambda settings, value: setattr(settings, "firmware", str(value)),
    "uuid": lambda settings, value: setattr(settings, "bios_uuid", str(value).lower()),
    "instanceUuid": lambda settings, value: setattr(settings, "instance_uuid", str(value).lower()),
    "changeTrackingEnabled": lambda settings, value: setattr(
        settings, "change_tracking", bool(value)
    ),
}


def changed_settings(present: MachineSettings, spec: WireObject) -> MachineSettings:
    """The settings with a specification applied; ``present`` stays as it is."""
    changed = present.copied()
    for name, put in SETTERS.items():
        value = getattr(spec, name)
        if value is not None:
            put(changed, value)
    if spec.bootOptions is not None and spec.bootOptions.efiSecureBootEnabled is not None:
        changed.secure_boot = bool(spec.bootOptions.efiSecureBootEnabled)
    changed.others = other_settings.changed(present.others, spec)
    for option in spec.extraConfig:
        if option.value in (None, ""):
            changed.extra_config.pop(option.key, None)
        else:
            changed.extra_config[option.key] = str(option.value)
    return changed


def switch_tracking(machine: Machine) -> None:
    """Switch change tracking of every disk to what the settings say. Without the lock."""
    for device in machine.disks():
        if not device.freezes or device.link is not None:
            continue
        if machine.settings.change_tracking:
            device.disk.enable_tracking()
        else:
            device.disk.disable_tracking()
