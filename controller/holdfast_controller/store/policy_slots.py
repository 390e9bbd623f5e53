"""Due moments of policies that were made use of: each at most once, however often and by whomever it is looked at."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlite_utils import Database as SqliteDatabase
from sqlite_utils import Migrations

from holdfast_common.clock import Clock, parse_utc, utc_text
from holdfast_common.errors import Refused
from holdfast_common.identity import RunId
from holdfast_controller.store.database import Database

MIGRATIONS = Migrations("policy_slots")


@MIGRATIONS()
def create_policy_slots(database: SqliteDatabase) -> None:
    """``calendar``: the expression and zone that made it due. ``run_id`` "": nothing was begun, ``told`` says why."""
    database.create_table(
        "policy_slots",
        {
            "policy_id": str,
            "slot": str,
            "calendar": str,
            "missed": int,
            "run_id": str,
            "told": str,
            "taken_at": str,
        },
        pk=("policy_id", "slot"),
        not_null={"calendar", "missed", "run_id", "told", "taken_at"},
    )
    database.table("policy_slots").create_index(["run_id"])


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicySlot:
    """A due moment. ``missed``: earlier ones that it stands for too. ``told``: what people must know of it; ""."""

    policy_id: str
    slot: datetime
    calendar: str
    missed: int = 0
    run_id: str = ""
    told: str = ""


class PolicySlotTable:
    """Thread-safe; each method is one transaction, or joins the caller's."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    def take(self, slot: PolicySlot) -> None:
        """Raises: Refused when it was taken before."""
        with self._database.transaction() as connection:
            taken = connection.execute(
                "INSERT OR IGNORE INTO policy_slots (policy_id, slot, calendar, missed, run_id, told, taken_at)"
                " VALUES (?,?,?,?,?,?,?)",
                (
                    slot.policy_id,
                    utc_text(slot.slot),
                    slot.calendar,
                    slot.missed,
                    slot.run_id,
                    slot.told,
                    utc_text(self._clock.now()),
                ),
            )
            if taken.rowcount != 1:
                raise Refused(
                    "this due moment of the policy was made use of already", slot=str(slot.slot)
                )

    def go_on(self, slot: PolicySlot, run_id: RunId) -> None:
        """Another run goes on with what was left of its run."""
        with self._database.transaction() as connection:
            connection.execute(
                "UPDATE policy_slots SET run_id = ? WHERE policy_id = ? AND slot = ?",
                (run_id, slot.policy_id, utc_text(slot.slot)),
            )

    def last(self, policy_id: str, *, until: datetime | None = None) -> PolicySlot | None:
        """The newest, of those not after ``until`` when that is given; None: there was none."""
        if until is None:
            found = self.latest(policy_id, limit=1)
        else:
            found = self._select(
                "WHERE policy_id = ? AND slot <= ? ORDER BY slot DESC LIMIT 1",
                (policy_id, utc_text(until)),
            )
        return found[0] if found else None

    def latest(self, policy_id: str, *, limit: int = 10) -> list[PolicySlot]:
        """Newest first."""
        return self._select("WHERE policy_id = ? ORDER BY slot DESC LIMIT ?", (policy_id, limit))

    def of_run(self, run_id: str) -> PolicySlot | None:
        """The moment that a run was begun for; None: an operator's, or one that another run went on with."""
        found = self._select("WHERE run_id = ?", (run_id,))
        return found[0] if found else None

    def _select(self, where: str, values: tuple[object, ...]) -> list[PolicySlot]:
        rows = self._database.execute(
            f"SELECT policy_id, slot, calendar, missed, run_id, told FROM policy_slots {where}",  # noqa: S608 - constant texts
            values,
        ).fetchall()
        return [
            PolicySlot(
                policy_id=str(row[0]),
                slot=parse_utc(row[1]),
                calendar=str(row[2]),
                missed=int(row[3]),
                run_id=str(row[4]),
                told=str(row[5]),
            )
            for row in rows
        ]
