"""What of policies and pauses an administrator must know who looks at `status`."""

from __future__ import annotations

from typing import Final

from holdfast_controller.runs.dispatch_notes import shortened_list
from holdfast_controller.runs.pausing import pause_of
from holdfast_controller.runs.world import World

LEFT_OUT_SHOWN_MAX: Final = 3


def schedule_warnings(world: World) -> list[str]:
    """One sentence each. Raises: StoreFailed, Locked."""
    found = []
    paused = pause_of(world)
    if paused is not None:
        why = f": {paused.reason}" if paused.reason else ""
        found.append(
            f"everything but restores is paused since {paused.since} by {paused.actor}{why};"
            " go on with `holdfast resume`"
        )
    for stored in world.policies.policies():
        pending = world.policy_slots.pending(stored.policy_id)
        if pending is not None and stored.policy.enabled:
            due = pending.slot.isoformat(timespec="minutes")
            found.append(
                f"policy {stored.policy.name} could not begin its run of {due} yet: {_short(pending.told)};"
                " it is tried again as long as its window is open"
            )
            continue
        slot = world.policy_slots.last(stored.policy_id)
        if slot is not None and not slot.run_id and slot.told and stored.policy.enabled:
            due = slot.slot.isoformat(timespec="minutes")
            found.append(f"policy {stored.policy.name} did nothing at {due}: {_short(slot.told)}")
    for unreadable in world.policies.unreadable():
        found.append(f"policy {unreadable.name} protects nothing: {unreadable.problem}")
    return found


def _short(told: str) -> str:
    """One line, even when thousands of VMs were left out."""
    return "; ".join(shortened_list(told.split("; "), at_most=LEFT_OUT_SHOWN_MAX))
