"""Calls that start a task, made so that a lost reply never makes anything twice."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final, TypeVar

from holdfast_common.errors import (
    HoldfastError,
    Interrupted,
    SourceGone,
    TimedOut,
    VsphereBusy,
    VsphereUnavailable,
)
from holdfast_common.retry import backoff_seconds
from holdfast_controller.vsphere import properties
from holdfast_controller.vsphere.foreign import Foreign, Reference, moref_of
from holdfast_controller.vsphere.session import TASK_TIMEOUT_SECONDS, VsphereSession

log = logging.getLogger(__name__)

ISSUES_OF_ONE_TASK_MAX: Final = 4
Value = TypeVar("Value")


def run_task(
    session: VsphereSession,
    target: Reference,
    method: str,
    *,
    what: str,
    landed: Callable[[], Value | None],
    busy: Reference = None,
    timeout_seconds: float = TASK_TIMEOUT_SECONDS,
    **arguments: Foreign,
) -> Value:
    """Start a task, wait for its end, and return its effect as ``landed`` reads it.

    After a lost reply (or a lost task) whatever runs on ``busy`` (default: ``target``) is waited
    for, then ``landed`` is asked; only when it finds no effect (None) the task is started again.
    While another task holds the object it waits, boundedly.

    Raises: the task's fault as an error of ours; TimedOut: the task goes on; what ``landed`` raises.
    """
    held = target if busy is None else busy
    waits = backoff_seconds(first=0.5, maximum=15.0, attempts=ISSUES_OF_ONE_TASK_MAX)
    problem: HoldfastError = VsphereUnavailable(f"{what}: the task ended without its effect")
    for _ in range(ISSUES_OF_ONE_TASK_MAX):
        try:
            task = session.call(target, method, **arguments)
            session.wait_for_task(task, what=what, timeout_seconds=timeout_seconds)
        except VsphereBusy as error:
            problem = error
            _pause(session, next(waits, 0.0), error)
            wait_until_idle(session, held, timeout_seconds=timeout_seconds)
            continue
        except (VsphereUnavailable, SourceGone) as error:
            # SourceGone: the object went (reading it says so too), or vSphere forgot the task
            log.info("looking for the effect of a call", extra={"method": method, "what": what})
            problem = error
            wait_until_idle(session, held, timeout_seconds=timeout_seconds)
        found = session.patiently(landed)
        if found is not None:
            return found
    raise problem


def wait_until_idle(session: VsphereSession, target: Reference, *, timeout_seconds: float) -> None:
    """Wait for every task that is queued or runs on ``target``; an object that is gone is idle.

    Raises: TimedOut.
    """
    deadline = session.clock.monotonic_seconds() + timeout_seconds
    while running := running_tasks(session, target):
        left = deadline - session.clock.monotonic_seconds()
        if left <= 0:
            raise TimedOut("a task of vSphere did not end in time", object=moref_of(target))
        for task in running:
            session.wait_for_end(task, timeout_seconds=left)


def running_tasks(session: VsphereSession, target: Reference) -> list[Reference]:
    """The tasks that are queued or run on an object now."""
    try:
        recent = properties.read_one(session, target, ["recentTask"]).get("recentTask") or []
        states = properties.read_many(session, list(recent), ["info.state"])
    except SourceGone:
        return []
    return [
        each.reference for each in states if each.values.get("info.state") in ("queued", "running")
    ]


def _pause(session: VsphereSession, seconds: float, cause: HoldfastError) -> None:
    if session.stop.wait(seconds):
        raise Interrupted("the session at vSphere is being closed") from cause
