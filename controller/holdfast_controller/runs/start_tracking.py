"""Changed-block tracking, switched on before a snapshot; and off once when its word is in doubt."""

from __future__ import annotations

from holdfast_common.errors import CapabilityAbsent, Refused, VsphereFailed
from holdfast_common.identity import LineageId
from holdfast_common.job_result import Warned
from holdfast_controller.facts import VmFacts
from holdfast_controller.runs.world import World
from holdfast_controller.vsphere import change_tracking
from holdfast_controller.vsphere.session import VsphereSession


def start_tracking(
    world: World, session: VsphereSession, vm: VmFacts, lineage_id: LineageId
) -> list[Warned]:
    """What is to be told when the next backup must read everything for want of it; it fails no backup."""
    doubt = world.catalogue.tracking_doubt(lineage_id)
    if doubt:
        return _begin_anew(session, vm, doubt)
    if vm.change_tracking_enabled:
        return []
    problem = change_tracking.hindrance(vm)
    try:
        if not problem:
            change_tracking.ensure_enabled(session, vm)
            return []
    except (CapabilityAbsent, VsphereFailed) as error:
        problem = str(error)
    return [
        Warned(
            code="change_tracking",
            message=f"change tracking is off, so every backup reads everything: {problem}",
        )
    ]


def _begin_anew(session: VsphereSession, vm: VmFacts, doubt: str) -> list[Warned]:
    """Off for this backup; the next one switches it on again."""
    told = "change tracking is switched off once, and everything is read"
    try:
        change_tracking.ensure_disabled(session, vm)
    except (CapabilityAbsent, Refused, VsphereFailed) as error:
        told = f"everything is read until change tracking can be begun anew ({error})"
    return [Warned(code="change_tracking", message=f"{told}: {doubt}")]
