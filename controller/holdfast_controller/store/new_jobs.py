"""Jobs about to be planned, and which of them cannot be begun beside those that have not ended."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from holdfast_common.errors import Locked, Refused
from holdfast_common.identity import RunId
from holdfast_common.job_result import ErrorReport
from holdfast_controller.decide.job_state import ENDED

NAMED_MAX: Final = 5  # VMs of one reason
Also = Callable[[RunId], None]


def nothing_else(_: RunId) -> None:
    """The run alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewJob:
    """A job about to be planned. ``subject``: the VM's name, or what else it works on.

    ``refused``: why it cannot be begun; it is written down beside others, as failed. ``excluded_by``: it
    is refused while a job of one of these kinds has not ended.
    """

    kind: str
    subject: str
    vcenter_id: str = ""
    instance_uuid: str = ""
    lineage_id: str = ""
    level_asked: str = ""
    transport: str = ""
    refused: ErrorReport | None = None
    excluded_by: tuple[str, ...] = ()


def refuse_all_refused(jobs: Sequence[NewJob]) -> None:
    """Raises: Refused when there is no job that can be begun."""
    reasons = [job.refused for job in jobs if job.refused is not None]
    if not reasons or len(reasons) < len(jobs):
        return
    if len(reasons) == 1:
        raise reasons[0].to_error()
    raise Refused("no VM can be worked on now: " + "; ".join(_by_reason(jobs)))


def _by_reason(jobs: Sequence[NewJob]) -> Iterator[str]:
    """Each reason once, with some of its VMs: thousands may have the same one."""
    names: dict[str, list[str]] = {}
    for job in jobs:
        if job.refused is not None:
            names.setdefault(job.refused.text(), []).append(job.subject)
    for reason, subjects in names.items():
        more = len(subjects) - NAMED_MAX
        rest = f" and {more} more" if more > 0 else ""
        yield f"{', '.join(subjects[:NAMED_MAX])}{rest}: {reason}"


def refused_as_second(connection: sqlite3.Connection, job: NewJob) -> NewJob:
    """The job, refused when its VM has one that has not ended, or when one that excludes it has not."""
    if job.refused is not None:
        return job
    ends = ",".join("?" * len(ENDED))
    if job.excluded_by:
        kinds = ",".join("?" * len(job.excluded_by))
        row = connection.execute(
            f"SELECT job_id, kind FROM jobs WHERE kind IN ({kinds}) AND state NOT IN ({ends})",  # noqa: S608 - only question marks
            (*job.excluded_by, *sorted(ENDED)),
        ).fetchone()
        if row is not None:
            locked = Locked(
                f"{'another' if row[1] == job.kind else 'a'} {row[1]} has not ended",
                job=row[0],
                advice=f"wait for it with `holdfast job follow {row[0]}`, or cancel it",
            )
            return replace(job, refused=ErrorReport.of(locked))
    if not job.instance_uuid:
        return job
    row = connection.execute(
        f"SELECT job_id FROM jobs WHERE vcenter_id = ? AND instance_uuid = ? AND state NOT IN ({ends})",  # noqa: S608 - only question marks
        (job.vcenter_id, job.instance_uuid, *sorted(ENDED)),
    ).fetchone()
    if row is None:
        return job
    error = Refused(
        f"{job.subject} has another job that has not ended",
        job=row[0],
        advice=f"wait for it with `holdfast job follow {row[0]}`, or cancel it",
    )
    return replace(job, refused=ErrorReport.of(error))
