"""What is to be told of this controller: what is so now, and what has ended since. For `notifier`.

From the database, and from memory: nothing outside is waited for.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from typing import Final

from holdfast_common.clock import parse_utc, utc_text
from holdfast_common.errors import NotFound
from holdfast_common.identity import RunId
from holdfast_common.units import size_text
from holdfast_controller.decide.job_state import JobState
from holdfast_controller.decide.notices import PASSING_AGE_MAX, Notice, NoticeKind
from holdfast_controller.runs.debts import debt_text, shortened
from holdfast_controller.runs.keeping_state import keeping_failures
from holdfast_controller.runs.promises import Promised
from holdfast_controller.runs.repository_space import Space
from holdfast_controller.runs.world import World
from holdfast_controller.store.job_figures import EndedJob
from holdfast_controller.store.jobs import JobRow
from holdfast_controller.store.policy_slots import NotBegun
from holdfast_controller.store.protection import ProtectedVm

_NOT_WELL: Final = frozenset({JobState.FAILED, JobState.PARTIAL, JobState.INTERRUPTED})
NAMED_MAX: Final = 5  # VMs in a line about a run


def standing_notices(world: World, space: Space | None, promised: Promised) -> Iterator[Notice]:
    """What is so now. Raises: Locked, StoreFailed."""
    now = world.clock.now()
    yield from _debts(world)
    yield from _suspects(world)
    yield from _missing(world, promised, now)
    if space is not None:
        yield from _full(world, space)
    yield from _keeping(world)


def passing_notices(world: World, ended: Sequence[EndedJob]) -> list[Notice]:
    """Of jobs that ended, and of the runs that ended with them. Raises: Locked, StoreFailed."""
    since = world.clock.now() - PASSING_AGE_MAX
    recent = [job for job in ended if parse_utc(job.finished_at) >= since]
    return [*_failures(recent), *_digests(world, recent)]


def not_begun_notices(runs: Iterable[NotBegun]) -> list[Notice]:
    """Of policies' runs that could not begin though they were tried for long."""
    return [
        Notice(
            key=f"not begun:{each.moment.policy_id}:{utc_text(each.moment.slot)}",
            kind=NoticeKind.FAILURE,
            text=f"policy {each.policy}: its run of {each.moment.slot.isoformat(timespec='minutes')}"
            f" cannot begin: {shortened(each.moment.told)}",
        )
        for each in runs
    ]


def _debts(world: World) -> Iterator[Notice]:
    for entry in world.ledger.debts():
        yield Notice(
            key=f"debt:{entry.entry_id}",
            kind=NoticeKind.DEBT,
            text=f"{debt_text(entry)}, since {entry.created_at[:19]}: {shortened(entry.last_error)}",
        )


def _suspects(world: World) -> Iterator[Notice]:
    for vm in world.protection.doubted():
        yield Notice(
            key=f"suspect:{vm.lineage_id}",
            kind=NoticeKind.SUSPECT,
            text=f"{vm.name or vm.lineage_id}: {vm.reason}; points in doubt: {vm.points}",
        )


def _missing(world: World, promised: Promised, now: datetime) -> Iterator[Notice]:
    """VMs whose promise is broken; where none is made, those that have points, of which none is good and young."""
    hours = world.configuration.notifications.missing_after_hours
    for vm in world.protection.vms():
        promise = promised.promises.get(vm.lineage_id)
        if promise is not None:
            if promise.is_broken(vm, now):
                yield _missing_notice(vm, f"; policy {promise.policy} promises a younger one")
        elif hours and vm.has_points and _is_older(vm, now, timedelta(hours=hours)):
            # one that never had a point need not be backed up; `status` tells those that no policy covers
            yield _missing_notice(vm, "")


def _is_older(vm: ProtectedVm, now: datetime, age_max: timedelta) -> bool:
    return not vm.last_good_at or now - parse_utc(vm.last_good_at) > age_max


def _missing_notice(vm: ProtectedVm, promise: str) -> Notice:
    last = f"last good point {vm.last_good_at[:19]}" if vm.last_good_at else "no good point"
    return Notice(
        key=f"missing:{vm.lineage_id}",
        kind=NoticeKind.MISSING_SUCCESS,
        text=f"{vm.name} ({vm.vcenter_name}): {last}{promise}",
    )


def _full(world: World, space: Space) -> Iterator[Notice]:
    settings = world.configuration.notifications
    wanted = max(
        round(settings.repository_free_share_min * space.capacity_bytes),
        settings.repository_free_bytes_min,
    )
    if space.free_bytes < wanted:
        yield Notice(
            key="repository full",
            kind=NoticeKind.REPOSITORY_FULL,
            text=f"{size_text(space.free_bytes)} of {size_text(space.capacity_bytes)} are free,"
            f" {size_text(wanted)} should be",
        )


def _keeping(world: World) -> Iterator[Notice]:
    """What no job's failure tells already."""
    for failure in keeping_failures(world):
        if not failure.run_id:
            yield Notice(
                key=f"keeping:{failure.key}", kind=NoticeKind.KEEPING, text=shortened(failure.text)
            )


def _failures(ended: Iterable[EndedJob]) -> Iterator[Notice]:
    for job in ended:
        if job.state in _NOT_WELL:
            yield Notice(
                key=f"failure:{job.job_id}",
                kind=NoticeKind.FAILURE,
                text=f"{job.kind} of {job.subject}: {job.state}{_why(job)} (job {job.job_id})",
            )


def _digests(world: World, ended: Iterable[EndedJob]) -> Iterator[Notice]:
    for run_id in dict.fromkeys(job.run_id for job in ended):
        text = _digest(world, run_id)
        if text:
            yield Notice(key=f"digest:{run_id}", kind=NoticeKind.DIGEST, text=text)


def _digest(world: World, run_id: RunId) -> str:
    """One line about a run; empty while it goes on."""
    try:
        run = world.runs.run(run_id)
    except NotFound:
        return ""
    if not run.finished_at:
        return ""
    jobs = world.jobs.jobs_of_run(run_id)
    states = world.job_figures.of_run(run_id)
    counts = ", ".join(f"{count} {state}" for state, count in states.items())
    disks = [disk for job in jobs for disk in job.disks]
    parts = [f"{run.kind} {run_id}: {counts}"]
    if disks:
        read, stored = (
            sum(disk.read_bytes for disk in disks),
            sum(disk.stored_bytes for disk in disks),
        )
        parts.append(f"read {size_text(read)}, stored {size_text(stored)}")
    warnings = sum(len(job.warnings) for job in jobs)
    if warnings:
        parts.append(f"warnings: {warnings}")
    parts.append(f"took {_duration(run.created_at, run.finished_at)}")
    not_well = [job for job in jobs if job.state is not JobState.DONE]
    if not_well:
        parts.append(f"not done: {_named(not_well)}")
    return "; ".join(parts)


def _named(jobs: Sequence[JobRow]) -> str:
    more = len(jobs) - NAMED_MAX
    named = ", ".join(job.subject for job in jobs[:NAMED_MAX])
    return f"{named} and {more} more" if more > 0 else named


def _why(job: EndedJob) -> str:
    return f": {shortened(job.error.text())}" if job.error is not None else ""


def _duration(begin: str, end: str) -> str:
    seconds = max(0, round((parse_utc(end) - parse_utc(begin)).total_seconds()))
    hours, rest = divmod(seconds, 3600)
    minutes, seconds = divmod(rest, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
