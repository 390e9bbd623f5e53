"""QueryChangedDiskAreas: which parts of a disk changed since a change id, true to the guest's writes.

Misbehaviour bites here: ``cut_change_lists`` gives a short but honest answer (parameter ``keep``:
how many areas), ``lying_changed_blocks`` leaves every second area out (parameter ``drop``: how many
of the last ones to leave out instead) and says nothing of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pyVmomi import vim

from holdfast_lab.device_table import DiskDevice
from holdfast_lab.faults import SoapFault, invalid_argument
from holdfast_lab.machine import Machine, MachineSnapshot
from holdfast_lab.method_registry import Call, soap_method
from holdfast_lab.misbehaviour import Rule
from holdfast_lab.storage.disk import AREAS_MAX
from holdfast_lab.storage.errors import ChangeIdUnknown, OutOfRange
from holdfast_lab.storage.runs import Area

Change = vim.VirtualMachine.DiskChangeInfo


@soap_method("QueryChangedDiskAreas")
def query_changed_areas(call: Call) -> Change:
    """Answer for one disk, up to the named snapshot; without one only while powered off."""
    machine = call.lab.get(call.this, Machine)
    device = _disk(call, machine)
    if device.raw_mapping == "physicalMode":
        raise SoapFault(
            vim.fault.FileFault(file=call.lab.datastore_path(device.descriptor)),
            "Change tracking is not supported for this disk.",
        )
    facts = {"vm": machine.name, "disk": device.disk.base_name}
    cut = call.lab.misbehaviour.due("cut_change_lists", **facts)
    lie = call.lab.misbehaviour.due("lying_changed_blocks", **facts)
    try:
        answer = device.disk.query(
            call.arguments.text("changeId"),
            device.descriptor,
            call.arguments.number("startOffset"),
            areas_max=max(1, cut.number("keep", 1)) if cut else AREAS_MAX,
            distort=_lie(lie) if lie else None,
        )
    except OutOfRange as error:
        raise invalid_argument("startOffset", str(error)) from error
    except ChangeIdUnknown as error:
        file = call.lab.datastore_path(device.descriptor)
        raise SoapFault(
            vim.fault.FileFault(file=file), f"Error caused by file {file}: {error}"
        ) from error
    return Change(
        startOffset=answer.start_offset,
        length=answer.length,
        changedArea=[
            Change.DiskChangeExtent(start=a.offset, length=a.length) for a in answer.areas
        ],
    )


def _disk(call: Call, machine: Machine) -> DiskDevice:
    """The disk as the named snapshot has it. Raises: SoapFault."""
    reference = call.arguments.optional("snapshot", vim.vm.Snapshot)
    if reference is None:
        if machine.powered_on:
            raise invalid_argument(
                "snapshot", "without a snapshot only the disks of a powered-off VM can be asked"
            )
        disks = machine.devices.disks
    else:
        snapshot = call.lab.get(reference, MachineSnapshot)
        if snapshot.machine is not machine:
            raise invalid_argument("snapshot", "the snapshot belongs to another virtual machine")
        disks = snapshot.devices.disks
    device = disks.get(call.arguments.number("deviceKey"))
    if device is None:
        raise invalid_argument("deviceKey", "there is no such disk")
    return device


def _lie(rule: Rule) -> Callable[[Sequence[Area]], Sequence[Area]]:
    dropped = rule.number("drop", 0)

    def distort(areas: Sequence[Area]) -> Sequence[Area]:
        if dropped:
            return areas[: max(0, len(areas) - dropped)]
        return areas[1::2]

    return distort
