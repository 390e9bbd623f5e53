"""Switching change tracking on and off: only without any snapshot, and believed only when read again."""

from __future__ import annotations

from typing import Final

from pyVmomi import vim

from holdfast_common.errors import CapabilityAbsent, Refused, VsphereFailed
from holdfast_controller.facts import VmFacts
from holdfast_controller.vsphere import properties
from holdfast_controller.vsphere.effects import run_task
from holdfast_controller.vsphere.foreign import reference
from holdfast_controller.vsphere.session import VsphereSession

HARDWARE_VERSION_MIN: Final = 7
ENABLE_TIMEOUT_SECONDS: Final = 600.0


def hindrance(vm: VmFacts) -> str:
    """Why change tracking cannot be switched on for this VM now; empty when it can."""
    if vm.hardware_version < HARDWARE_VERSION_MIN:
        return f"hardware version {vm.hardware_version} is older than {HARDWARE_VERSION_MIN}"
    if not vm.change_tracking_supported:
        return "the host says that it does not support change tracking for this VM"
    if vm.snapshots:
        return "the VM has snapshots, and switched on under them it gives wrong answers"
    if vm.template:
        return "it is a template"
    return ""


def ensure_enabled(session: VsphereSession, vm: VmFacts) -> bool:
    """Switch change tracking on; True when it was off before.

    It becomes active with the next snapshot: until a disk shows a change id it does not count.
    Raises: Refused with the hindrance; CapabilityAbsent without the right; VsphereFailed.
    """
    if vm.change_tracking_enabled:
        return False
    problem = hindrance(vm)
    if problem:
        raise Refused(f"change tracking stays off: {problem}", vm=vm.name)
    _switch(session, vm, wanted=True)
    return True


def ensure_disabled(session: VsphereSession, vm: VmFacts) -> bool:
    """Switch change tracking off; True when it was on before. The next snapshot has no change ids.

    Raises: Refused while there are snapshots; CapabilityAbsent without the right; VsphereFailed.
    """
    if not vm.change_tracking_enabled:
        return False
    if vm.snapshots:
        raise Refused("change tracking stays on: the VM has snapshots", vm=vm.name)
    _switch(session, vm, wanted=False)
    return True


def _switch(session: VsphereSession, vm: VmFacts, *, wanted: bool) -> None:
    machine = reference(vim.VirtualMachine, vm.moref)
    how = "on" if wanted else "off"

    def landed() -> bool | None:
        return True if is_enabled(session, vm.moref) is wanted else None

    try:
        run_task(
            session,
            machine,
            "ReconfigVM_Task",
            what=f"switching change tracking {how} for {vm.name}",
            landed=landed,
            timeout_seconds=ENABLE_TIMEOUT_SECONDS,
            # Refused when a snapshot was made, or anything else was changed, since the VM was looked at.
            spec=vim.vm.ConfigSpec(
                changeTrackingEnabled=wanted, changeVersion=vm.configuration_version or None
            ),
        )
    except CapabilityAbsent as error:
        raise CapabilityAbsent(
            f"the account may not switch change tracking {how}",
            advice="give it VirtualMachine.Config.ChangeTracking",
            vm=vm.name,
        ) from error
    except VsphereFailed as error:
        raise VsphereFailed(
            f"change tracking could not be switched {how}", vm=vm.name, cause=error.message
        ) from error


def is_enabled(session: VsphereSession, vm_moref: str) -> bool:
    """The flag as vSphere shows it now. Raises: SourceGone."""
    machine = reference(vim.VirtualMachine, vm_moref)
    values = properties.read_one(session, machine, ["config.changeTrackingEnabled"])
    return bool(values.get("config.changeTrackingEnabled"))
