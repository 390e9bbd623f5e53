"""Whether a policy's run is due now, and whether it may begin. Pure; for the controller and for its plan alike."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from holdfast_controller.decide.calendar import DueRun, due_now, next_due
from holdfast_controller.decide.policy import Policy
from holdfast_controller.decide.windows import current_opening, next_opening


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyHistory:
    """When a policy was made and changed, and the due moment that was made use of last, with what it was due by."""

    created_at: datetime
    changed_at: datetime
    last_slot: datetime | None = None
    last_calendar: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DuePolicy:
    """A run that is to be begun. ``level``: what the policy's calendars ask for. ``skipped``: why it is not, instead."""

    due: DueRun
    level: str
    skipped: str = ""


def looked_at(policy: Policy) -> tuple[int, str]:
    """The order in which policies are looked at: of two that are due at once the more important one begins first."""
    return -policy.priority, policy.name


def calendar_text(policy: Policy) -> str:
    """What makes it due: another text is another calendar, which knows nothing of the moments of this one."""
    return f"{policy.calendar.expression} {policy.time_zone}"


def due_policy(policy: Policy, history: PolicyHistory, now: datetime) -> DuePolicy | None:
    """None: nothing is due, or its window is shut; then it is due when the window opens, once.

    A calendar counts from when it was given: a policy that is moved from evening to morning at noon is next due tomorrow.
    A policy that is switched off lets its moments pass, so it does not begin by day when it is switched on.
    """
    last = history.last_slot
    if last is None:
        last = history.created_at
    elif history.last_calendar != calendar_text(policy):
        last = max(last, history.changed_at)
    due = due_now(policy.calendar, last_slot=last, now=now)
    if due is None:
        return None
    level = policy.level_due(slot=due.due_at, slot_before=history.last_slot)
    if not policy.enabled:
        return DuePolicy(due=due, level=level, skipped="the policy is switched off")
    if current_opening(policy.windows, now) is None:
        return None
    return DuePolicy(due=due, level=level)


def may_go_on(policy: Policy, slot: datetime, now: datetime) -> bool:
    """Whether what is left of the run of ``slot`` may be begun again now: not when the window is shut.

    Nor in a later opening in which the policy is yet due: that run does it.
    """
    opening = current_opening(policy.windows, now)
    if not policy.enabled or opening is None:
        return False
    if opening == next_opening(policy.windows, slot) or opening.closes_at is None:
        return True
    return next_due(policy.calendar, now) >= opening.closes_at
