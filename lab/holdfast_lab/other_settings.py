"""Settings of a VM that change nothing here, and are shown as they were set: hot-add, flags, allocations, boot."""

from __future__ import annotations

import copy
from collections.abc import Mapping

from pyVmomi import vim

from holdfast_lab.wire_types import WireObject

# one value each; a running VM cannot take them
PLAIN = ("memoryHotAddEnabled", "cpuHotAddEnabled", "cpuHotRemoveEnabled", "nestedHVEnabled")
OF_ANY_VM = ("swapPlacement",)
# objects of which a specification names the parts that change
OBJECTS = ("flags", "cpuAllocation", "memoryAllocation", "latencySensitivity", "bootOptions")


def of_a_new_machine() -> dict[str, WireObject]:
    """What a VM has by itself."""
    allocation = vim.ResourceAllocationInfo(
        reservation=0,
        expandableReservation=False,
        limit=-1,
        shares=vim.SharesInfo(shares=1000, level="normal"),
    )
    return {
        **dict.fromkeys(PLAIN, False),
        "swapPlacement": "inherit",
        "flags": vim.vm.FlagInfo(
            enableLogging=True,
            virtualMmuUsage="automatic",
            virtualExecUsage="hvAuto",
            snapshotDisabled=False,
            snapshotLocked=False,
            vbsEnabled=False,
            diskUuidEnabled=False,
        ),
        "cpuAllocation": allocation,
        "memoryAllocation": copy.deepcopy(allocation),
        "latencySensitivity": vim.LatencySensitivity(level="normal"),
        "bootOptions": vim.vm.BootOptions(
            bootDelay=0, enterBIOSSetup=False, bootRetryEnabled=False, bootRetryDelay=10000
        ),
    }


def changed(present: Mapping[str, WireObject], spec: WireObject) -> dict[str, WireObject]:
    """The settings with a specification applied; ``present`` stays as it is."""
    result = {name: copy.deepcopy(value) for name, value in present.items()}
    for name in (*PLAIN, *OF_ANY_VM):
        if getattr(spec, name) is not None:
            result[name] = getattr(spec, name)
    for name in OBJECTS:
        given = getattr(spec, name)
        for prop in given._GetPropertyList() if given is not None else ():
            value = getattr(given, prop.name)
            if value is not None and value != [] and not prop.name.startswith("dynamic"):
                setattr(result[name], prop.name, copy.deepcopy(value))
    return result
