"""The tags of VMs as they were last read, beside the inventory: one document for each vCenter.

Whose tags cannot be read for now keeps the old ones, with what went wrong; whose tags are not ours to
read has none. The table is made with those of `inventory`.
"""

from __future__ import annotations

from typing import Final

import msgspec

from holdfast_controller.decide.tag_knowledge import TagSource
from holdfast_controller.facts import TagReading, VmTag
from holdfast_controller.store.database import Database

PROBLEM_LENGTH_MAX: Final = 500


class VmTagTable:
    """Thread-safe; each method is one transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def keep(self, vcenter_id: str, reading: TagReading) -> None:
        """Keep what was read, instead of what was known before."""
        self._put(vcenter_id, reading.taken_at, "", msgspec.json.encode(reading.vms))

    def note_problem(self, vcenter_id: str, problem: str) -> None:
        """They could not be read again: the old ones stay."""
        with self._database.transaction() as connection:
            connection.execute(
                "INSERT INTO inventory_tags VALUES (?,'',?,?)"
                " ON CONFLICT (vcenter_id) DO UPDATE SET problem = excluded.problem",
                (vcenter_id, problem[:PROBLEM_LENGTH_MAX], b"{}"),
            )

    def note_absent(self, vcenter_id: str, reason: str) -> None:
        """There are none for us to read: no old ones are used either."""
        self._put(vcenter_id, "", reason[:PROBLEM_LENGTH_MAX], b"{}")

    def forget(self, vcenter_id: str) -> None:
        """Drop everything of one vCenter."""
        with self._database.transaction() as connection:
            connection.execute("DELETE FROM inventory_tags WHERE vcenter_id = ?", (vcenter_id,))

    def all(self) -> dict[str, dict[str, tuple[VmTag, ...]]]:
        """By vCenter and by the VM's moref; a VM that is not there: its tags are not known."""
        rows = self._database.execute("SELECT vcenter_id, vms FROM inventory_tags").fetchall()
        return {
            str(row[0]): msgspec.json.decode(row[1], type=dict[str, tuple[VmTag, ...]])
            for row in rows
        }

    def sources(self, vcenter_name: str = "") -> list[TagSource]:
        """How far the tags of each vCenter and host are known, by name; of one when named."""
        rows = self._database.execute(
            "SELECT v.name, v.is_vcenter, coalesce(t.taken_at, ''), coalesce(t.problem, '')"
            " FROM vcenters v LEFT JOIN inventory_tags t ON t.vcenter_id = v.vcenter_id"
            " WHERE ? = '' OR v.name = ? ORDER BY v.name",
            (vcenter_name, vcenter_name),
        ).fetchall()
        return [
            TagSource(vcenter_name=row[0], is_vcenter=bool(row[1]), taken_at=row[2], problem=row[3])
            for row in rows
        ]

    def _put(self, vcenter_id: str, taken_at: str, problem: str, vms: bytes) -> None:
        with self._database.transaction() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO inventory_tags VALUES (?,?,?,?)",
                (vcenter_id, taken_at, problem, vms),
            )
