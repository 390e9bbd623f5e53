"""What the controller remembers of keeping its repository: due moments that were made use of, each at most once."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlite_utils import Database as SqliteDatabase
from sqlite_utils import Migrations

from holdfast_common.clock import Clock, parse_utc, utc_text
from holdfast_common.errors import Refused
from holdfast_common.identity import LineageId, RunId
from holdfast_controller.store.database import Database

MIGRATIONS = Migrations("keeping")


@MIGRATIONS()
def create_keeping(database: SqliteDatabase) -> None:
    """``keeping_slots``: each due moment at most once; ``run_id`` "": nothing was begun, ``told`` says why."""
    database.create_table(
        "keeping_slots",
        {
            "task": str,
            "slot": str,
            "missed": int,
            "run_id": str,
            "told": str,
            "taken_at": str,
        },
        pk=("task", "slot"),
        not_null={"missed", "run_id", "told", "taken_at"},
    )
    database.table("keeping_slots").create_index(["run_id"])


@dataclass(frozen=True, slots=True, kw_only=True)
class KeepingSlot:
    """A due moment. ``missed``: earlier ones that it stands for too. ``told``: what people must know of it; ""."""

    task: str
    slot: datetime
    missed: int = 0
    run_id: str = ""
    told: str = ""


class KeepingTable:
    """Thread-safe; each method is one transaction, or joins the caller's."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    def take(self, slot: KeepingSlot) -> None:
        """Raises: Refused when it was taken before."""
        with self._database.transaction() as connection:
            taken = connection.execute(
                "INSERT OR IGNORE INTO keeping_slots (task, slot, missed, run_id, told, taken_at)"
                " VALUES (?,?,?,?,?,?)",
                (
                    slot.task,
                    utc_text(slot.slot),
                    slot.missed,
                    slot.run_id,
                    slot.told,
                    utc_text(self._clock.now()),
                ),
            )
            if taken.rowcount != 1:
                raise Refused("this due moment was made use of already", slot=str(slot.slot))

    def go_on(self, slot: KeepingSlot, run_id: RunId) -> None:
        """Another run goes on with what was left of its run."""
        with self._database.transaction() as connection:
            connection.execute(
                "UPDATE keeping_slots SET run_id = ? WHERE task = ? AND slot = ?",
                (run_id, slot.task, utc_text(slot.slot)),
            )

    def last(self, task: str, *, until: datetime | None = None) -> KeepingSlot | None:
        """The newest, of those not after ``until`` when that is given; None: there was none."""
        if until is None:
            found = self._slots("WHERE task = ? ORDER BY slot DESC LIMIT 1", (task,))
        else:
            found = self._slots(
                "WHERE task = ? AND slot <= ? ORDER BY slot DESC LIMIT 1", (task, utc_text(until))
            )
        return found[0] if found else None

    def of_run(self, run_id: str) -> KeepingSlot | None:
        """The moment that a run was begun for; None: somebody else began it."""
        found = self._slots("WHERE run_id = ?", (run_id,))
        return found[0] if found else None

    def read_back_at(self, before: str) -> dict[LineageId, str]:
        """By VM: when its newest point was taken whose backup had ended before then (UTC text); of no others."""
        rows = self._database.execute(
            "SELECT p.lineage_id, max(p.created_at) FROM points p JOIN jobs j ON j.job_id = p.job_id"
            " WHERE j.finished_at != '' AND j.finished_at < ? GROUP BY p.lineage_id",
            (before,),
        ).fetchall()
        return {LineageId(str(row[0])): str(row[1]) for row in rows}

    def _slots(self, where: str, values: tuple[str, ...]) -> list[KeepingSlot]:
        rows = self._database.execute(
            f"SELECT task, slot, missed, run_id, told FROM keeping_slots {where}",  # noqa: S608 - constant texts
            values,
        ).fetchall()
        return [
            KeepingSlot(
                task=str(row[0]),
                slot=parse_utc(row[1]),
                missed=int(row[2]),
                run_id=str(row[3]),
                told=str(row[4]),
            )
            for row in rows
        ]
