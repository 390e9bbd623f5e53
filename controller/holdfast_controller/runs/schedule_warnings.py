"""What of policies and pauses an administrator must know who looks at `status`."""

from __future__ import annotations

from holdfast_controller.runs.pausing import pause_of
from holdfast_controller.runs.world import World


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
        slot = world.policy_slots.last(stored.policy_id)
        if slot is not None and not slot.run_id and slot.told and stored.policy.enabled:
            due = slot.slot.isoformat(timespec="minutes")
            found.append(f"policy {stored.policy.name} did nothing at {due}: {slot.told}")
    for unreadable in world.policies.unreadable():
        found.append(f"policy {unreadable.name} protects nothing: {unreadable.problem}")
    return found
