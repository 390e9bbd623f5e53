"""Rights that a call needs beyond its method's own: Reconfigure asks for one per kind of change.

A method's own privilege stands in pyVmomi's tables and is checked before it runs (``soap_service``).
Names are those of the vSphere privilege reference.
"""

from __future__ import annotations

from collections.abc import Mapping

from pyVmomi import vim

from holdfast_lab.faults import SoapFault
from holdfast_lab.method_registry import Call
from holdfast_lab.wire_types import WireObject

CONFIG = "VirtualMachine.Config"
BY_PROPERTY: Mapping[str, str] = {
    "name": f"{CONFIG}.Rename",
    "annotation": f"{CONFIG}.Annotation",
    "numCPUs": f"{CONFIG}.CPUCount",
    "memoryMB": f"{CONFIG}.Memory",
    "extraConfig": f"{CONFIG}.AdvancedConfig",
    "changeTrackingEnabled": f"{CONFIG}.ChangeTracking",
    "guestId": f"{CONFIG}.Settings",
    "firmware": f"{CONFIG}.Settings",
    "uuid": f"{CONFIG}.Settings",
    "instanceUuid": f"{CONFIG}.Settings",
    "version": f"{CONFIG}.Settings",
}


def check_privilege(call: Call, target: WireObject, privilege: str) -> None:
    """Raises: SoapFault (NoPermission, which names the privilege)."""
    user = call.session.user
    if user is None or not user.may(privilege):
        raise SoapFault(
            vim.fault.NoPermission(object=target, privilegeId=privilege),
            f"Permission to perform this operation was denied: {privilege}",
        )


def check_reconfigure(call: Call, spec: WireObject) -> None:
    """Every right that a specification needs. Raises: SoapFault."""
    for privilege in sorted(needed_for(spec)):
        check_privilege(call, call.this, privilege)


def needed_for(spec: WireObject) -> set[str]:
    """The privileges for the changes of a ``ConfigSpec``."""
    needed = {
        privilege
        for name, privilege in BY_PROPERTY.items()
        if getattr(spec, name) is not None and getattr(spec, name) != []
    }
    return needed | {_for_device(change) for change in spec.deviceChange}


def _for_device(change: WireObject) -> str:
    if not isinstance(change.device, vim.vm.device.VirtualDisk):
        if change.operation == "edit":
            return f"{CONFIG}.EditDevice"
        return f"{CONFIG}.AddRemoveDevice"
    if change.operation == "add":
        created = change.fileOperation is not None
        return f"{CONFIG}.AddNewDisk" if created else f"{CONFIG}.AddExistingDisk"
    if change.operation == "remove":
        return f"{CONFIG}.RemoveDisk"
    return f"{CONFIG}.EditDevice"
