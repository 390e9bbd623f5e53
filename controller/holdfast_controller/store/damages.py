"""What checks found and repairs left: the whole list of each, kept for the latest of them."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from sqlite_utils import Database as SqliteDatabase
from sqlite_utils import Migrations

from holdfast_common.extents import Extent
from holdfast_common.identity import JobId
from holdfast_common.job_result import DamageFound, JobResult
from holdfast_controller.store.database import Database

MIGRATIONS = Migrations("damages")
LISTS_KEPT_MAX: Final = 20  # jobs; of a repository that is badly hurt some 20 MiB each
ROW_RANGES_MAX: Final = 4096  # 100 KiB: so a page of rows is a small message
_SUMMARY: Final = "objects, points, ranges, lost_bytes, objects_left_out, losses_left_out, ranges_left_out, bytes_left_out"


@MIGRATIONS()
def create_damages(database: SqliteDatabase) -> None:
    """One list a job, and its rows; a disk with many lost ranges has several rows."""
    numbers = dict.fromkeys(_SUMMARY.split(", "), int)
    database.create_table(
        "damage_lists", {"job_id": str, **numbers}, pk="job_id", not_null={*numbers}
    )
    database.create_table(
        "damages",
        {
            "job_id": str,
            "number": int,
            "object_name": str,
            "problem": str,
            "point_id": str,
            "device_key": int,
            "lost": str,
            "ranges_left_out": int,
            "bytes_left_out": int,
        },
        pk=("job_id", "number"),
        not_null={"object_name", "problem", "point_id", "device_key", "lost"},
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class DamageTotals:
    """How much a list holds, and what was too much for it (see `JobResult`). ``points``: of those listed."""

    objects: int
    points: int
    ranges: int
    lost_bytes: int
    objects_left_out: int
    losses_left_out: int
    ranges_left_out: int
    bytes_left_out: int

    @classmethod
    def of(cls, result: JobResult) -> DamageTotals:
        """Of what an agent found; ranges and bytes with those that it left out."""
        ranges_left_out = sum(damage.ranges_left_out for damage in result.damages)
        bytes_left_out = sum(damage.bytes_left_out for damage in result.damages)
        lost = [extent.length for damage in result.damages for extent in damage.lost]
        return cls(
            objects=sum(not damage.point_id for damage in result.damages) + result.objects_left_out,
            points=len({damage.point_id for damage in result.damages if damage.point_id}),
            ranges=len(lost) + ranges_left_out,
            lost_bytes=sum(lost) + bytes_left_out,
            objects_left_out=result.objects_left_out,
            losses_left_out=result.losses_left_out,
            ranges_left_out=ranges_left_out,
            bytes_left_out=bytes_left_out,
        )


class DamageTable:
    """Thread-safe; each method is one transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def keep(self, job_id: JobId, result: JobResult) -> None:
        """Keep what a job found, in place of what it found before; the oldest lists go."""
        with self._database.transaction() as connection:
            _drop(connection, [job_id])
            if not result.damages:
                return
            totals = DamageTotals.of(result)
            names = _SUMMARY.split(", ")
            connection.execute(
                f"INSERT INTO damage_lists (job_id, {_SUMMARY}) VALUES (?,?,?,?,?,?,?,?,?)",  # noqa: S608 - constant texts
                (job_id, *(getattr(totals, name) for name in names)),
            )
            connection.executemany(
                "INSERT INTO damages (job_id, number, object_name, problem, point_id, device_key, lost,"
                " ranges_left_out, bytes_left_out) VALUES (?,?,?,?,?,?,?,?,?)",
                (
                    (
                        job_id,
                        number,
                        row.object_name,
                        row.problem,
                        row.point_id,
                        row.device_key,
                        json.dumps([number for e in row.lost for number in (e.offset, e.length)]),
                        row.ranges_left_out,
                        row.bytes_left_out,
                    )
                    for number, row in enumerate(_rows(result.damages))
                ),
            )
            old = connection.execute(
                "SELECT job_id FROM damage_lists ORDER BY job_id DESC LIMIT -1 OFFSET ?",
                (LISTS_KEPT_MAX,),
            ).fetchall()
            _drop(connection, [str(row[0]) for row in old])

    def totals(self, job_id: JobId) -> DamageTotals | None:
        """None: that job found nothing, or its list is no longer kept."""
        row = self._database.execute(
            f"SELECT {_SUMMARY} FROM damage_lists WHERE job_id = ?",  # noqa: S608 - constant texts
            (job_id,),
        ).fetchone()
        if row is None:
            return None
        return DamageTotals(**dict(zip(_SUMMARY.split(", "), map(int, row), strict=True)))

    def rows(self, job_id: JobId, *, start: int, count: int) -> list[DamageFound]:
        """Some rows from that number on. A disk with many ranges has several, one after the other."""
        found = self._database.execute(
            "SELECT object_name, problem, point_id, device_key, lost, ranges_left_out, bytes_left_out"
            " FROM damages WHERE job_id = ? AND number >= ? ORDER BY number LIMIT ?",
            (job_id, start, count),
        ).fetchall()
        return [_damage(row) for row in found]


def _drop(connection: sqlite3.Connection, job_ids: Sequence[str]) -> None:
    for job_id in job_ids:
        connection.execute("DELETE FROM damages WHERE job_id = ?", (job_id,))
        connection.execute("DELETE FROM damage_lists WHERE job_id = ?", (job_id,))


def _rows(damages: Sequence[DamageFound]) -> Iterator[DamageFound]:
    """With at most so many ranges each; what is left out stands in a disk's last one."""
    for damage in damages:
        starts = range(0, len(damage.lost), ROW_RANGES_MAX) or range(1)
        for start in starts:
            last = start == starts[-1]
            yield DamageFound(
                object_name=damage.object_name,
                problem=damage.problem,
                point_id=damage.point_id,
                device_key=damage.device_key,
                lost=damage.lost[start : start + ROW_RANGES_MAX],
                ranges_left_out=damage.ranges_left_out if last else 0,
                bytes_left_out=damage.bytes_left_out if last else 0,
            )


def _damage(row: Sequence[object]) -> DamageFound:
    numbers = json.loads(str(row[4]))
    return DamageFound(
        object_name=str(row[0]),
        problem=str(row[1]),
        point_id=str(row[2]),
        device_key=int(str(row[3])),
        lost=tuple(
            Extent(offset=offset, length=length)
            for offset, length in zip(numbers[::2], numbers[1::2], strict=True)
        ),
        ranges_left_out=int(str(row[5])),
        bytes_left_out=int(str(row[6])),
    )
