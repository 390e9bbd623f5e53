"""`holdfast policy run`: a run of a policy now, outside its calendar, as an operator asks for it.

It makes use of no due moment: what the calendar begins next is begun all the same. While the policy's window is open the
run belongs to it, and stops when it closes; while it is shut the run ignores it, because that is what was asked for.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime

from holdfast_common.errors import Refused
from holdfast_controller.decide.policy import Policy
from holdfast_controller.decide.windows import current_opening, next_opening
from holdfast_controller.runs.engine import Engine
from holdfast_controller.runs.loads import window_gate
from holdfast_controller.runs.pausing import Pause, pause_of, refuse_while_paused
from holdfast_controller.runs.policy_requests import level_of_vm, policy_request, selected_vms
from holdfast_controller.runs.requests import Started
from holdfast_controller.runs.world import World


@dataclass(frozen=True, slots=True, kw_only=True)
class RunByHand:
    """A run that has begun, or would. ``told``: what people must know of it as a whole."""

    started: Started
    told: tuple[str, ...]


def run_policy(
    world: World, engine: Engine, name: str, *, level: str = "", dry_run: bool = False
) -> RunByHand:
    """Back up what the policy selects now, and as it says. ``level`` "": each VM's by the policy's rule.

    Raises: NotFound, UsageError, NothingProtected, NoRepository, CapabilityAbsent; Refused when everything is paused
    (a dry run tells that), when all its VMs are at work, or when nothing could be started.
    """
    stored = world.policies.policy(name)
    policy, now = stored.policy, world.clock.now()
    paused = pause_of(world)
    if not dry_run:
        refuse_while_paused(world)
    is_open, told = _window(policy, now)
    told += _hindrances(policy, paused)
    gate = window_gate(stored.policy_id, policy.name)
    request = replace(
        policy_request(
            stored, level=level, priority=policy.priority, gates=(gate,) if is_open else ()
        ),
        by_hand=True,
        window_of=stored.policy_id if is_open else "",
    )
    chosen, of_selection = selected_vms(world, engine, policy)
    if not chosen:
        raise Refused(
            "all its VMs are at work",
            policy=name,
            vms="; ".join(of_selection)[:500],
            advice="see `holdfast job list`",
        )
    last = world.policy_slots.last(stored.policy_id, until=now)
    by_calendar = policy.level_due(slot=now, slot_before=None if last is None else last.slot)
    wanted = []
    for known in chosen:
        asked, why = level, ""
        if not level:
            asked, why = level_of_vm(world, policy, known, level=by_calendar, slot=now)
        if why:
            of_selection.append(f"{known.vm.name}: {why}")
        wanted.append((replace(request, level=asked), known))
    if not level:
        request = replace(request, level=by_calendar)
    started = engine.start_backups(request, wanted, [*told, *of_selection], dry_run=dry_run)
    return RunByHand(started=started, told=(*told, *of_selection))


def _window(policy: Policy, now: datetime) -> tuple[bool, list[str]]:
    """Whether it is open, and what that means for the run."""
    opening = current_opening(policy.windows, now)
    if opening is None:
        opens_at = next_opening(policy.windows, now).opens_at
        until = "" if opens_at is None else f" until {opens_at.isoformat(timespec='minutes')}"
        return False, [f"the policy's window is shut{until}: this run ignores it"]
    if opening.closes_at is None:
        return True, []
    closes = opening.closes_at.isoformat(timespec="minutes")
    return True, [f"this run stops when the policy's window closes, at {closes}"]


def _hindrances(policy: Policy, paused: Pause | None) -> list[str]:
    told = []
    if not policy.enabled:
        told.append("the policy is switched off: its calendar begins no run")
    if paused is not None:
        told.append(
            f"everything is paused since {paused.since} by {paused.actor}: it would be refused"
        )
    return told
