"""Due moments of policies that were made use of: each at most once, however often and by whomever it is looked at.

One whose run could not begin yet is written down too, with why; it was not made use of.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

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


@MIGRATIONS()
def keep_what_cannot_begin(database: SqliteDatabase) -> None:
    """``pending`` 1: a run that could not begin yet, and why; the moment was not made use of."""
    database.table("policy_slots").add_column("pending", int, not_null_default=0)


@MIGRATIONS()
def know_what_was_told(database: SqliteDatabase) -> None:
    """``failing_since``: when its run could not begin first; "": it never failed. ``is_told`` 1: people were notified."""
    table = database.table("policy_slots")
    table.add_column("failing_since", str, not_null_default="")
    table.add_column("is_told", int, not_null_default=0)
    table.create_index(["pending"])


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicySlot:
    """A due moment. ``missed``: earlier ones that it stands for too. ``told``: what people must know of it; ""."""

    policy_id: str
    slot: datetime
    calendar: str
    missed: int = 0
    run_id: str = ""
    told: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class NotBegun:
    """A due moment whose run could not begin, of the policy with this name; the moment's ``told`` says why."""

    policy: str
    moment: PolicySlot


class PolicySlotTable:
    """Thread-safe; each method is one transaction, or joins the caller's."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    def take(self, slot: PolicySlot) -> None:
        """Raises: Refused when it was taken before."""
        if not self._written(slot, pending=False):
            raise Refused(
                "this due moment of the policy was made use of already", slot=str(slot.slot)
            )

    def cannot_begin(self, slot: PolicySlot) -> None:
        """Its run could not begin yet; ``told`` says why. Nothing happens when it was taken meanwhile."""
        self._written(slot, pending=True)

    def pending(self, policy_id: str) -> PolicySlot | None:
        """The newest moment, if its run could not begin yet."""
        found = self._select(
            "WHERE policy_id = ?1 AND pending = 1"
            " AND slot = (SELECT max(slot) FROM policy_slots WHERE policy_id = ?1)",
            (policy_id,),
        )
        return found[0] if found else None

    def not_begun(self, *, since_before: datetime, news_since: datetime) -> list[NotBegun]:
        """What could not begin first before ``since_before``, and of which nobody was notified; oldest first.

        Without what another run stood for since, and without what began to fail before ``news_since``, unless it is
        the policy's newest moment, which is tried yet.
        """
        rows = self._database.execute(
            "SELECT policies.name, s.policy_id, s.slot, s.calendar, s.missed, s.run_id, s.told"
            " FROM policy_slots AS s JOIN policies USING (policy_id)"
            " WHERE s.pending = 1 AND s.is_told = 0 AND s.failing_since != ''"
            " AND s.failing_since <= ?1 AND (s.failing_since >= ?2 OR s.slot ="
            " (SELECT max(slot) FROM policy_slots AS n WHERE n.policy_id = s.policy_id))"
            " AND NOT EXISTS (SELECT 1 FROM policy_slots AS later WHERE later.policy_id = s.policy_id"
            " AND later.slot > s.slot AND later.run_id != '') ORDER BY s.slot, policies.name",
            (utc_text(since_before), utc_text(news_since)),
        ).fetchall()
        return [NotBegun(policy=str(row[0]), moment=_slot(row[1:])) for row in rows]

    def note_told(self, moments: Iterable[PolicySlot]) -> None:
        """People were notified that their runs could not begin."""
        with self._database.transaction() as connection:
            connection.executemany(
                "UPDATE policy_slots SET is_told = 1 WHERE policy_id = ? AND slot = ?",
                [(each.policy_id, utc_text(each.slot)) for each in moments],
            )

    def go_on(self, slot: PolicySlot, run_id: RunId) -> None:
        """Another run goes on with what was left of its run."""
        with self._database.transaction() as connection:
            connection.execute(
                "UPDATE policy_slots SET run_id = ? WHERE policy_id = ? AND slot = ?",
                (run_id, slot.policy_id, utc_text(slot.slot)),
            )

    def forget_after(self, policy_id: str, moment: datetime) -> None:
        """As if what is due after ``moment`` had not been made use of yet."""
        with self._database.transaction() as connection:
            connection.execute(
                "DELETE FROM policy_slots WHERE policy_id = ? AND slot > ?",
                (policy_id, utc_text(moment)),
            )

    def last(self, policy_id: str, *, until: datetime | None = None) -> PolicySlot | None:
        """The newest, of those not after ``until`` when that is given; None: there was none."""
        if until is None:
            found = self.latest(policy_id, limit=1)
        else:
            found = self._select(
                "WHERE policy_id = ? AND slot <= ? AND pending = 0 ORDER BY slot DESC LIMIT 1",
                (policy_id, utc_text(until)),
            )
        return found[0] if found else None

    def latest(self, policy_id: str, *, limit: int = 10) -> list[PolicySlot]:
        """Newest first."""
        return self._select(
            "WHERE policy_id = ? AND pending = 0 ORDER BY slot DESC LIMIT ?", (policy_id, limit)
        )

    def of_run(self, run_id: str) -> PolicySlot | None:
        """The moment that a run was begun for; None: an operator's, or one that another run went on with."""
        found = self._select("WHERE run_id = ?", (run_id,))
        return found[0] if found else None

    def _written(self, slot: PolicySlot, *, pending: bool) -> bool:
        """Whether it was: not over what was taken."""
        with self._database.transaction() as connection:
            written = connection.execute(
                "INSERT INTO policy_slots (policy_id, slot, calendar, missed, run_id, told, taken_at, pending,"
                " failing_since) VALUES (?1,?2,?3,?4,?5,?6,?7,?8, iif(?8, ?7, '')) ON CONFLICT (policy_id, slot) DO UPDATE SET"
                " calendar = excluded.calendar, missed = excluded.missed, run_id = excluded.run_id,"
                " told = excluded.told, taken_at = excluded.taken_at, pending = excluded.pending"
                " WHERE pending = 1",
                (
                    slot.policy_id,
                    utc_text(slot.slot),
                    slot.calendar,
                    slot.missed,
                    slot.run_id,
                    slot.told,
                    utc_text(self._clock.now()),
                    int(pending),
                ),
            )
            return written.rowcount == 1

    def _select(self, where: str, values: tuple[object, ...]) -> list[PolicySlot]:
        rows = self._database.execute(
            f"SELECT policy_id, slot, calendar, missed, run_id, told FROM policy_slots {where}",  # noqa: S608 - constant texts
            values,
        ).fetchall()
        return [_slot(row) for row in rows]


def _slot(row: Sequence[Any]) -> PolicySlot:
    return PolicySlot(
        policy_id=str(row[0]),
        slot=parse_utc(row[1]),
        calendar=str(row[2]),
        missed=int(row[3]),
        run_id=str(row[4]),
        told=str(row[5]),
    )
