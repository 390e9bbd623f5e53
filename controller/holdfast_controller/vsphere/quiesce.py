"""Which consistency a snapshot is asked for, and which it reached by the evidence that exists.

A quiesce without running Tools is ignored silently by vSphere, so a task's success proves nothing:
the level reached comes from the Tools' state before, and from the snapshot's own ``quiesced``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from pyVmomi import vim

from holdfast_controller.facts import VmFacts
from holdfast_controller.vsphere.foreign import Foreign

COLD: Final = "cold"
CRASH: Final = "crash"
FILESYSTEM: Final = "filesystem"
APPLICATION: Final = "application"
LEVELS: Final = (CRASH, FILESYSTEM, APPLICATION)
QUIESCE_TIMEOUT_MINUTES: Final = 10
VSS_BT_COPY: Final = 5  # VSS_BACKUP_TYPE: a copy cuts no logs
SCSI_UNITS: Final = 15
_SCSI: Final = frozenset({"pvscsi", "lsilogic", "lsisas", "buslogic"})


@dataclass(frozen=True, slots=True)
class QuiescePlan:
    """What will be asked of vSphere (``level``: crash means no quiesce), and why not more."""

    level: str
    reason: str


@dataclass(frozen=True, slots=True)
class Reached:
    """A level and how we know."""

    level: str
    evidence: str


def plan_quiesce(vm: VmFacts, asked: str, *, unquiesced: str = "") -> QuiescePlan:
    """The highest level that can be tried for what was asked; ``unquiesced``: why none may be."""
    if vm.power_state != "poweredOn":
        return QuiescePlan(COLD, f"the VM is {vm.power_state or 'not running'}")
    if asked == COLD:
        return QuiescePlan(CRASH, "the VM is running, so a cold backup is not possible")
    if asked == CRASH:
        return QuiescePlan(CRASH, "")
    if unquiesced:
        return QuiescePlan(CRASH, unquiesced)
    if vm.tools_running != "guestToolsRunning":
        state = vm.tools_running or "unknown"
        return QuiescePlan(CRASH, f"VMware Tools are not running in the guest ({state})")
    if asked == APPLICATION and (hindrance := application_hindrance(vm)):
        return QuiescePlan(FILESYSTEM, hindrance)
    return QuiescePlan(asked, "")


def application_hindrance(vm: VmFacts) -> str:
    """Why Tools cannot quiesce applications in this VM; empty when nothing is known against it."""
    if not is_windows(vm):
        return "VMware Tools quiesce applications on Windows only"
    if vm.encrypted:
        return "applications of an encrypted VM cannot be quiesced"
    if any(disk.adapter not in _SCSI for disk in vm.disks):
        return "a disk is not on a SCSI controller"
    for controller in {disk.controller_key for disk in vm.disks}:
        on_it = sum(1 for disk in vm.disks if disk.controller_key == controller)
        if 2 * on_it > SCSI_UNITS:
            return "a SCSI controller has fewer free slots than disks"
    return ""


def is_windows(vm: VmFacts) -> bool:
    """By the guest id that the administrator chose."""
    return vm.guest_id.lower().startswith(("win", "windows"))


def quiesce_spec(vm: VmFacts, level: str) -> Foreign:
    """The spec of CreateSnapshotEx for this level; None: take no quiesce."""
    if level not in (FILESYSTEM, APPLICATION):
        return None
    if not is_windows(vm):
        return vim.vm.GuestQuiesceSpec(timeout=QUIESCE_TIMEOUT_MINUTES)
    return vim.vm.WindowsQuiesceSpec(
        timeout=QUIESCE_TIMEOUT_MINUTES,
        vssBackupType=VSS_BT_COPY,
        vssBackupContext="ctx_backup" if level == APPLICATION else "ctx_file_share_backup",
        vssBootableSystemState=False,
        vssPartialFileSupport=False,
    )


def reached(plan: QuiescePlan, *, quiesced: bool) -> Reached:
    """The level of a finished snapshot whose ``quiesced`` is as given."""
    because = f"; {plan.reason}" if plan.reason else ""
    if plan.level == COLD:
        return Reached(COLD, plan.reason)
    if plan.level == CRASH:
        return Reached(CRASH, f"taken without quiescing{because}")
    if not quiesced:
        return Reached(CRASH, f"vSphere did not mark the snapshot as quiesced{because}")
    return Reached(
        plan.level, f"Tools were running and the snapshot is marked as quiesced{because}"
    )


def is_lower(level: str, than: str) -> bool:
    """Whether a level is worth less; a cold VM is as good as anything."""
    if level == COLD:
        return False
    if than == COLD:
        return True
    return LEVELS.index(level) < LEVELS.index(than)


def next_lower(plan: QuiescePlan, reason: str) -> QuiescePlan:
    """The next level to try after a quiesce failed."""
    lower = LEVELS[max(0, LEVELS.index(plan.level) - 1)]
    return QuiescePlan(lower, "; ".join(each for each in (plan.reason, reason) if each))
