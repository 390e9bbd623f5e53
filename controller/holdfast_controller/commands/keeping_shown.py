"""What `holdfast status` prints of keeping the repository."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from holdfast_common.clock import parse_utc
from holdfast_common.units import size_text
from holdfast_common.wire import operator_pb2
from holdfast_controller.decide.tag_knowledge import age_text


def keeping_lines(keeping: operator_pb2.Keeping, now: datetime) -> Iterator[str]:
    """A line a task, what is not kept by a rule, and how much was read back."""
    for task in keeping.tasks:
        yield f"keeping  {task.task:<7} {_last(task)}; {_next(task, now)}"
    if keeping.uncovered_points:
        yield (
            f"keeping  {keeping.uncovered_points} points of {keeping.uncovered_vms} VMs that no policy"
            " covers: all of them stay"
        )
    if keeping.looked_at:
        unproven = size_text(keeping.unproven_bytes)
        total = size_text(keeping.stored_bytes)
        oldest = keeping.oldest_proof_at
        rest = f"; the rest within {age_text(oldest, now)}" if oldest else ""
        yield (
            f"read back, {age_text(keeping.looked_at, now)} ago: {unproven} of {total} never{rest}"
        )


def _last(task: operator_pb2.KeepingTask) -> str:
    if not task.last_at:
        return "never"
    mark = "" if task.well else "NOT WELL: "
    run = f" (run {task.last_run})" if task.last_run else ""
    return f"{task.last_at[:16]}Z {mark}{task.result}{run}"


def _next(task: operator_pb2.KeepingTask, now: datetime) -> str:
    if not task.next_at:
        return "switched off"
    if task.held_up:
        return f"due, and does not begin: {task.held_up}"
    is_due = parse_utc(task.next_at) <= now
    return "begins now" if is_due else f"next {task.next_at[:16]}Z"
