"""What a check found or a repair left, for people: some of it, with right numbers of what is not told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from holdfast_common.errors import IntegrityError
from holdfast_common.identity import JobId
from holdfast_common.job_result import DamageFound, ErrorReport, JobResult, Outcome, Warned
from holdfast_common.units import size_text

TOLD_MAX: Final = 100  # of damaged objects, and of what points have lost
RANGES_TOLD_MAX: Final = 5  # of one disk


def told_damages(result: JobResult, job_id: JobId) -> JobResult:
    """With its damages as warnings and, if there are any, its error, for people."""
    if not result.damages:
        return result
    objects = [damage for damage in result.damages if not damage.point_id]
    losses = [damage for damage in result.damages if damage.point_id]
    texts = _told(objects, "damaged objects", left_out=result.objects_left_out, job_id=job_id)
    texts += _told(
        losses, "disks or blobs of points", left_out=result.losses_left_out, job_id=job_id
    )
    findings = len(result.damages) + result.objects_left_out + result.losses_left_out
    points = len({damage.point_id for damage in losses})
    at_least = "at least " if result.losses_left_out else ""
    error = IntegrityError(
        f"the repository is damaged: {findings} findings, {at_least}{points} points concerned",
        advice=f"`{listing(job_id)}` lists every point and byte range; restore from other points;"
        " `holdfast repo repair --from COPY` mends it from a copy, and deletes nothing",
    )
    return replace(
        result,
        outcome=Outcome.FAILED,
        error=ErrorReport.of(error),
        warnings=(*result.warnings, *(Warned(code="damage", message=text) for text in texts)),
    )


def listing(job_id: JobId) -> str:
    """The command that lists all of it."""
    return f"holdfast job damages {job_id}"


def _told(damages: Sequence[DamageFound], what: str, *, left_out: int, job_id: JobId) -> list[str]:
    texts = [_text(damage, job_id) for damage in damages[:TOLD_MAX]]
    more = len(damages) + left_out - len(texts)
    if not more:
        return texts
    where = f"the full list: `{listing(job_id)}`, with --json for programs"
    if left_out:
        where = f"`{listing(job_id)}` lists all but {left_out} of them"
    return [*texts, f"and {more} more {what}; {where}"]


def _text(damage: DamageFound, job_id: JobId) -> str:
    text = f"{damage.object_name}: {damage.problem}"
    if not damage.point_id:
        return text
    if not damage.lost and not damage.ranges_left_out:
        return f"{text}; lost of point {damage.point_id}"
    told = damage.lost[:RANGES_TOLD_MAX]
    lost = "".join(f", offset {extent.offset} {size_text(extent.length)}" for extent in told)
    rest = damage.lost[RANGES_TOLD_MAX:]
    more = len(rest) + damage.ranges_left_out
    if more:
        length = sum(extent.length for extent in rest) + damage.bytes_left_out
        lost += f" and {more} more ({size_text(length)} together): see `{listing(job_id)}`"
    return f"{text}; lost of point {damage.point_id}, disk {damage.device_key}{lost}"
