"""What the table of jobs tells of points: which one was found damaged, holds less than was asked for, or is being read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from holdfast_common.identity import JobId
from holdfast_controller.decide.job_state import ENDED, JobState
from holdfast_controller.store.database import Database


@dataclass(frozen=True, slots=True, kw_only=True)
class PointReaders:
    """Jobs that have not ended and read points. ``of_all``: the one that reads every point; empty: none does."""

    of_all: str = ""
    of_one: Mapping[str, str] = field(default_factory=dict)

    def of(self, point_id: str) -> str:
        """Which job reads it, for people; empty: none."""
        return self.of_one.get(point_id, self.of_all)


class PointUse:
    """Thread-safe; only reads."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def readers(self) -> PointReaders:
        """Restores read their point; checks those that they were asked for, or all; repairs all."""
        ends = ",".join("?" * len(ENDED))
        rows = self._database.execute(
            "SELECT job_id, jobs.kind, request FROM jobs JOIN runs USING (run_id)"  # noqa: S608 - only question marks
            f" WHERE jobs.kind IN ('restore', 'check', 'repair') AND state NOT IN ({ends})"
            " ORDER BY job_id DESC",
            tuple(sorted(ENDED)),
        ).fetchall()
        of_all = ""
        of_one: dict[str, str] = {}
        for job_id, kind, request in rows:
            asked = json.loads(request)
            text = f"a {kind} reads it: job {job_id}"
            points = [asked["point"]] if "point" in asked else asked.get("points", [])
            if points:
                of_one |= dict.fromkeys(points, text)
            else:
                of_all = text
        return PointReaders(of_all=of_all, of_one=of_one)

    def damaged(self) -> dict[str, str]:
        """Points that have lost something, with the newest job that found it.

        Counted from the newest check on that read all data; what is found since then only adds.
        """
        rows = self._database.execute(
            "SELECT DISTINCT point_id, job_id FROM damages WHERE point_id != '' AND job_id >= coalesce(("
            " SELECT max(job_id) FROM jobs JOIN runs USING (run_id) WHERE jobs.kind = 'check'"
            " AND json_extract(request, '$.read_data') AND json_extract(request, '$.subset') = ''"
            " AND json_array_length(request, '$.points') = 0"
            " AND (state = ? OR job_id IN (SELECT job_id FROM damage_lists))), '') ORDER BY job_id",
            (JobState.DONE,),
        ).fetchall()
        return {str(point): f"it lost data (found by job {job})" for point, job in rows}

    def lowered(self, codes: Sequence[str]) -> dict[JobId, str]:
        """Backups that made a point with less than was asked for: those that ended with one of these warnings."""
        marks = ",".join("?" * len(codes))
        rows = self._database.execute(
            "SELECT job_id, json_extract(each.value, '$.message') FROM jobs, json_each(jobs.warnings) each"  # noqa: S608 - only question marks
            f" WHERE kind = 'backup' AND state = ? AND json_extract(each.value, '$.code') IN ({marks})"
            " ORDER BY job_id",
            (JobState.PARTIAL, *codes),
        ).fetchall()
        return {JobId(job): f"partial: {message}" for job, message in rows}
