"""What a point holds of a VM besides its devices and size: hot-add, flags, allocations, boot options.

Set in a change of its own after the VM is made. What vSphere refuses there, or has no place for, is a note:
it never costs the restore. Only what differs from what a new VM has by itself is set.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from pyVmomi import vim

from holdfast_common.errors import FormatError, VsphereFailed, VsphereUnavailable
from holdfast_controller.facts import VmFacts
from holdfast_controller.vsphere.configuration import Json, decoded_setting
from holdfast_controller.vsphere.effects import wait_until_idle
from holdfast_controller.vsphere.foreign import Foreign, Reference, reference
from holdfast_controller.vsphere.session import VsphereSession

SETTING_TIMEOUT_SECONDS: Final = 600.0
_PLAIN: Final[Mapping[str, tuple[str, Json]]] = {  # property -> what people call it, a new VM's
    "memoryHotAddEnabled": ("memory hot-add", False),
    "cpuHotAddEnabled": ("CPU hot-add", False),
    "cpuHotRemoveEnabled": ("CPU hot-remove", False),
    "nestedHVEnabled": ("nested virtualization", False),
    "swapPlacement": ("the place of the swap file", "inherit"),
}
_ALLOCATION: Final[Mapping[str, Json]] = {
    "reservation": 0,
    "limit": -1,
    "expandableReservation": False,
    "overheadLimit": None,
}
_OBJECTS: Final[Mapping[str, tuple[str, Mapping[str, Json]]]] = {
    "flags": (
        "flags",
        {
            "enableLogging": True,
            "virtualMmuUsage": "automatic",
            "virtualExecUsage": "hvAuto",
            "htSharing": "any",
            "snapshotPowerOffBehavior": "powerOff",
            "faultToleranceType": "unset",
            "monitorType": "release",
        },
    ),
    "cpuAllocation": ("CPU allocation", _ALLOCATION),
    "memoryAllocation": ("memory allocation", _ALLOCATION),
    "latencySensitivity": ("latency sensitivity", {"level": "normal"}),
    "bootOptions": ("boot options", {"networkBootProtocol": "ipv4", "bootRetryDelay": 10000}),
}
# The old VM's state, its keys of devices, or set with the VM already.
_NOT_TAKEN_OVER: Final[Mapping[str, frozenset[str]]] = {
    "flags": frozenset(
        {"snapshotLocked", "snapshotDisabled", "faultToleranceType", "monitorType",
         "recordReplayEnabled", "runWithDebugInfo"}
    ),
    "bootOptions": frozenset({"bootOrder", "efiSecureBootEnabled"}),
    "cpuAllocation": frozenset({"overheadLimit"}),
    "memoryAllocation": frozenset({"overheadLimit"}),
    "latencySensitivity": frozenset(),
}  # fmt: skip
_SILENT: Final = frozenset({"efiSecureBootEnabled", "overheadLimit"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One of them: a property of the specification with its value, and what people call it."""

    name: str
    label: str
    value: Foreign


def other_settings(
    configuration: Mapping[str, Json],
) -> tuple[tuple[Setting, ...], tuple[str, ...]]:
    """What is to be set, and what is not taken over, in words."""
    settings: list[Setting] = []
    notes: list[str] = []
    for name, (label, usual) in _PLAIN.items():
        value = configuration.get(name)
        if isinstance(value, type(usual)) and value != usual:
            settings.append(Setting(name=name, label=label, value=value))
    for name, (label, usual_parts) in _OBJECTS.items():
        described = configuration.get(name)
        if isinstance(described, dict):
            wanted = dict(_unusual(name, described, usual_parts, notes))
            if wanted:
                settings.extend(_decoded(name, label, described, wanted, notes))
    if configuration.get("managedBy") is not None:
        notes.append("the VM was managed by an extension; the restored one is not")
    if configuration.get("template"):
        notes.append("it was a template; what is restored is a VM")
    return tuple(settings), tuple(notes)


def set_other_settings(
    session: VsphereSession, vm: VmFacts, configuration: Mapping[str, Json]
) -> tuple[str, ...]:
    """Set them; what is not set, in words. Raises: VsphereUnavailable, TimedOut."""
    settings, notes = other_settings(configuration)
    if not settings:
        return notes
    machine = reference(vim.VirtualMachine, vm.moref)
    if not _refused(session, machine, *settings):
        return notes
    # not all together: then each that is possible
    refusals = [(each, _refused(session, machine, each)) for each in settings]
    return (*notes, *(f"{each.label} not set: {why}" for each, why in refusals if why))


def _unusual(
    name: str, described: Mapping[str, Json], usual: Mapping[str, Json], notes: list[str]
) -> Iterator[tuple[str, Json]]:
    """The parts of an object that differ from a new VM's: what is not named in ``usual`` is off there."""
    for part, value in described.items():
        is_usual = value == usual[part] if part in usual else not value
        if part == "_type" or value is None or is_usual:
            continue
        if part == "shares":
            level = value.get("level") if isinstance(value, dict) else None
            if level == "normal":
                continue
        if part not in _NOT_TAKEN_OVER[name]:
            yield part, value
        elif part not in _SILENT:
            notes.append(f"{part} is not taken over")


def _decoded(
    name: str,
    label: str,
    described: Mapping[str, Json],
    wanted: Mapping[str, Json],
    notes: list[str],
) -> Iterator[Setting]:
    try:
        value, dropped = decoded_setting(name, {"_type": described.get("_type"), **wanted})
    except FormatError as error:
        notes.append(f"{label} not set: {error.message}")
        return
    if dropped:
        notes.append(f"{label}: {', '.join(dropped)} is not known here and left out")
    yield Setting(name=name, label=label, value=value)


def _refused(session: VsphereSession, machine: Reference, *settings: Setting) -> str:
    """Set some of them together; why vSphere does not, empty when it did."""
    spec = vim.vm.ConfigSpec(**{each.name: each.value for each in settings})
    labels = ", ".join(each.label for each in settings)

    def change() -> None:
        # the same change once more does no harm, so a lost reply needs no looking for its effect
        wait_until_idle(session, machine, timeout_seconds=SETTING_TIMEOUT_SECONDS)
        task = session.call(machine, "ReconfigVM_Task", spec=spec)
        session.wait_for_task(
            task, what=f"setting {labels}", timeout_seconds=SETTING_TIMEOUT_SECONDS
        )

    try:
        session.patiently(change)
    except VsphereUnavailable:
        raise
    except VsphereFailed as error:
        return error.message
    return ""
