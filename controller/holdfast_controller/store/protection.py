"""How each VM stands: its newest point, its newest good one, its last backup. One question for all, whatever there is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from holdfast_common.identity import LineageId
from holdfast_controller.decide.job_state import JobState
from holdfast_controller.store.database import Database

# Newest first along the index of lineage and time, so it mostly looks at one point of a VM.
_NEWEST_GOOD: Final = (
    "(SELECT p.point_id FROM points p WHERE p.lineage_id = {lineage}"
    " AND NOT EXISTS (SELECT 1 FROM suspect_points s WHERE s.point_id = p.point_id)"
    " AND NOT EXISTS (SELECT 1 FROM jobs j WHERE j.job_id = p.job_id AND j.state = ?)"
    " ORDER BY p.created_at DESC LIMIT 1)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProtectedVm:
    """A VM of the inventory. ``last_good_at``: of its newest point that is whole and not in doubt; empty: none.

    ``has_points``: whether it has any point, good or not. ``confidence``: of that good point, see `decide.confidence`;
    None: there is none, or it is not known.
    """

    lineage_id: LineageId
    name: str
    vcenter_name: str
    last_good_at: str
    has_points: bool
    confidence: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DoubtedVm:
    """A VM whose change tracking is not believed. ``points``: how many of its points are in doubt."""

    lineage_id: LineageId
    name: str
    reason: str
    points: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NewestOfVm:
    """``point_id``: of its newest point, good or not; ``result``: how its last backup ended; empty: there is none."""

    point_id: str
    result: str


class Protection:
    """Thread-safe; each method is one question."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def vms(self) -> list[ProtectedVm]:
        """All VMs of the inventory, by name."""
        lineage = "c.instance_uuid || '/' || v.instance_uuid"
        rows = self._database.execute(
            f"SELECT {lineage}, v.name, c.name, coalesce(good.created_at, ''),"  # noqa: S608 - constant texts
            f" EXISTS (SELECT 1 FROM points p WHERE p.lineage_id = {lineage}), e.confidence"
            " FROM inventory_vms v JOIN vcenters c ON c.vcenter_id = v.vcenter_id"
            f" LEFT JOIN points good ON good.point_id = {_NEWEST_GOOD.format(lineage=lineage)}"
            " LEFT JOIN tracking_evidence e ON e.point_id = good.point_id"
            " ORDER BY v.name, v.moref",
            (JobState.PARTIAL,),
        ).fetchall()
        return [
            ProtectedVm(
                lineage_id=LineageId(str(row[0])),
                name=str(row[1]),
                vcenter_name=str(row[2]),
                last_good_at=str(row[3]),
                has_points=bool(row[4]),
                confidence=None if row[5] is None else float(row[5]),
            )
            for row in rows
        ]

    def newest(self) -> dict[tuple[str, str], NewestOfVm]:
        """Of all VMs of the inventory, by the id of their vCenter and their own instance uuid."""
        rows = self._database.execute(
            "SELECT v.vcenter_id, v.instance_uuid,"
            " coalesce((SELECT p.point_id FROM points p"
            " WHERE p.lineage_id = c.instance_uuid || '/' || v.instance_uuid"
            " ORDER BY p.created_at DESC, p.point_id DESC LIMIT 1), ''),"
            " coalesce((SELECT j.state FROM jobs j WHERE j.kind = 'backup' AND j.vcenter_id = v.vcenter_id"
            " AND j.instance_uuid = v.instance_uuid AND j.finished_at != ''"
            " ORDER BY j.job_id DESC LIMIT 1), '')"
            " FROM inventory_vms v LEFT JOIN vcenters c ON c.vcenter_id = v.vcenter_id"
        ).fetchall()
        return {
            (str(row[0]), str(row[1])): NewestOfVm(point_id=str(row[2]), result=str(row[3]))
            for row in rows
        }

    def doubted(self) -> list[DoubtedVm]:
        """Those whose change tracking was caught, until it has been begun anew."""
        rows = self._database.execute(
            "SELECT l.lineage_id, coalesce((SELECT p.vm_name FROM points p"
            " WHERE p.lineage_id = l.lineage_id ORDER BY p.created_at DESC LIMIT 1), ''),"
            " l.tracking_doubt, (SELECT count(*) FROM suspect_points s JOIN points p"
            " ON p.point_id = s.point_id WHERE p.lineage_id = l.lineage_id)"
            " FROM lineages l WHERE l.tracking_doubt != '' ORDER BY l.lineage_id"
        ).fetchall()
        return [
            DoubtedVm(
                lineage_id=LineageId(str(row[0])),
                name=str(row[1]),
                reason=str(row[2]),
                points=int(row[3]),
            )
            for row in rows
        ]

    def points_by_vm(self) -> dict[LineageId, int]:
        """How many points there are of each VM that has any."""
        rows = self._database.execute("SELECT lineage_id, count(*) FROM points GROUP BY lineage_id")
        return {LineageId(str(row[0])): int(row[1]) for row in rows.fetchall()}

    def points(self) -> int:
        """How many points there are."""
        return int(self._database.execute("SELECT count(*) FROM points").fetchone()[0])

    def points_in_doubt(self) -> int:
        """How many of them are in doubt."""
        return int(self._database.execute("SELECT count(*) FROM suspect_points").fetchone()[0])
