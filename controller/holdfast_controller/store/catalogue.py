"""Restore points as the controller knows them: a searchable copy, rebuildable from the repository."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlite_utils import Database as SqliteDatabase
from sqlite_utils import Migrations

from holdfast_common.errors import IntegrityError, NotFound
from holdfast_common.identity import JobId, LineageId, PointId, RepositoryId
from holdfast_common.point_record import PointRecord
from holdfast_controller.decide.confidence import Evidence
from holdfast_controller.decide.job_state import JobState
from holdfast_controller.store.database import Database
from holdfast_controller.store.tracking_evidence import drop_evidence, evidence_of, keep_evidence

MIGRATIONS = Migrations("catalogue")


@MIGRATIONS()
def create_points(database: SqliteDatabase) -> None:
    """Points, and the last known change id of each disk."""
    database.create_table(
        "points",
        {
            "point_id": str,
            "repository_id": str,
            "lineage_id": str,
            "job_id": str,
            "vcenter_id": str,
            "instance_uuid": str,
            "vm_name": str,
            "created_at": str,
            "record": str,
        },
        pk="point_id",
        not_null={"repository_id", "lineage_id", "job_id", "created_at", "record"},
    )
    database.table("points").create_index(["lineage_id", "created_at"])
    database.table("points").create_index(["job_id"])
    database.create_table(
        "lineages",
        {
            "lineage_id": str,
            "vcenter_id": str,
            "instance_uuid": str,
            "full_needed": str,
        },
        pk="lineage_id",
    )


@MIGRATIONS()
def order_fulls_and_points(database: SqliteDatabase) -> None:
    """After which event of any job a full became needed: points of older snapshots do not meet it."""
    database.table("lineages").add_column("full_needed_event", int, not_null_default=0)


@MIGRATIONS()
def create_restored_disks(database: SqliteDatabase) -> None:
    """Disks that restores in place made, which may be in no point yet."""
    database.create_table(
        "restored_disks",
        {"lineage_id": str, "device_key": int, "uuid": str},
        pk=("lineage_id", "device_key", "uuid"),
    )


@MIGRATIONS()
def doubt_change_tracking(database: SqliteDatabase) -> None:
    """What audits of change tracking did, and found."""
    lineages = database.table("lineages")
    lineages.add_column("audit_turn", int, not_null_default=0)
    lineages.add_column("tracking_doubt", str, not_null_default="")
    database.create_table(
        "suspect_points", {"point_id": str, "reason": str}, pk="point_id", not_null={"reason"}
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class PointRow:
    """One committed point. ``record`` is an encoded `PointRecord`; ``vcenter_id`` the vCenter's instance uuid."""

    point_id: PointId
    repository_id: RepositoryId
    lineage_id: LineageId
    job_id: JobId
    vcenter_id: str
    instance_uuid: str
    vm_name: str
    created_at: str
    record: str

    def decoded(self) -> PointRecord:
        """The record as a value. Raises: FormatError."""
        return PointRecord.decode(self.record)


class Catalogue:
    """Points and lineages. Thread-safe; each method is one transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, point: PointRow) -> None:
        """Remember a committed point; twice is harmless, and what is remembered first stays.

        Its lineage needs no full any more, unless that need arose after this point's snapshot.
        Raises: IntegrityError when another job's point has this id.
        """
        with self._database.transaction() as connection:
            owner = connection.execute(
                "SELECT job_id, lineage_id FROM points WHERE point_id = ?", (point.point_id,)
            ).fetchone()
            if owner is not None:
                if tuple(owner) != (point.job_id, point.lineage_id):
                    raise IntegrityError(
                        "another job's restore point has this id", point=point.point_id
                    )
                return
            connection.execute(
                "INSERT INTO points (point_id, repository_id, lineage_id, job_id,"
                " vcenter_id, instance_uuid, vm_name, created_at, record) VALUES (?,?,?,?,?,?,?,?,?)",
                (
                    point.point_id,
                    point.repository_id,
                    point.lineage_id,
                    point.job_id,
                    point.vcenter_id,
                    point.instance_uuid,
                    point.vm_name,
                    point.created_at,
                    point.record,
                ),
            )
            keep_evidence(connection, point.point_id, point.record)
            connection.execute(
                "INSERT INTO lineages (lineage_id, vcenter_id, instance_uuid, full_needed)"
                " VALUES (?,?,?,'') ON CONFLICT (lineage_id) DO NOTHING",
                (point.lineage_id, point.vcenter_id, point.instance_uuid),
            )
            # by the order of the jobs' events: clocks can be set back
            connection.execute(
                "UPDATE lineages SET full_needed = '' WHERE lineage_id = ? AND full_needed_event <"
                " (SELECT max(event_id) FROM job_events WHERE job_id = ? AND event = ?)",
                (point.lineage_id, point.job_id, JobState.SNAPSHOTTING),
            )

    def evidence(self, point_id: PointId) -> Evidence | None:
        """What speaks for a point, see `decide.confidence`; None: nothing is known. Raises: FormatError."""
        return evidence_of(self._database, point_id)

    def remove(self, point_id: PointId) -> None:
        """Forget a point that is no longer in the repository; twice is harmless."""
        with self._database.transaction() as connection:
            connection.execute("DELETE FROM points WHERE point_id = ?", (point_id,))
            connection.execute("DELETE FROM suspect_points WHERE point_id = ?", (point_id,))
            drop_evidence(connection, point_id)

    def require_full(self, lineage_id: LineageId, reason: str) -> None:
        """The next backup of this lineage must be a full (our own restore, a suspicion)."""
        with self._database.transaction() as connection:
            connection.execute(
                "INSERT INTO lineages (lineage_id, vcenter_id, instance_uuid, full_needed,"
                " full_needed_event)"
                " VALUES (?,'','',?,(SELECT coalesce(max(event_id), 0) FROM job_events))"
                " ON CONFLICT (lineage_id) DO UPDATE SET full_needed = excluded.full_needed,"
                " full_needed_event = excluded.full_needed_event",
                (lineage_id, reason),
            )

    def full_needed(self, lineage_id: LineageId) -> str:
        """Why the next backup must be a full; empty: it need not be."""
        row = self._database.execute(
            "SELECT full_needed FROM lineages WHERE lineage_id = ?", (lineage_id,)
        ).fetchone()
        return "" if row is None else str(row[0] or "")

    def audit_turn(self, lineage_id: LineageId) -> int:
        """Which share of its disks the next audit of change tracking reads."""
        row = self._database.execute(
            "SELECT audit_turn FROM lineages WHERE lineage_id = ?", (lineage_id,)
        ).fetchone()
        return 0 if row is None else int(row[0])

    def end_audit_turn(self, lineage_id: LineageId) -> None:
        """The next audit reads the next share."""
        with self._database.transaction() as connection:
            connection.execute(
                "UPDATE lineages SET audit_turn = audit_turn + 1 WHERE lineage_id = ?",
                (lineage_id,),
            )

    def tracking_doubt(self, lineage_id: LineageId) -> str:
        """Why change tracking of this VM is not believed before it was begun anew; empty: it is."""
        row = self._database.execute(
            "SELECT tracking_doubt FROM lineages WHERE lineage_id = ?", (lineage_id,)
        ).fetchone()
        return "" if row is None else str(row[0])

    def doubt_tracking(
        self, lineage_id: LineageId, reason: str, *, suspects: Sequence[str] = ()
    ) -> None:
        """Believe it no more; points that stand on it are in doubt from now on. Twice is harmless."""
        with self._database.transaction() as connection:
            connection.execute(
                "INSERT INTO lineages (lineage_id, vcenter_id, instance_uuid, full_needed,"
                " tracking_doubt) VALUES (?,'','','',?) ON CONFLICT (lineage_id)"
                " DO UPDATE SET tracking_doubt = excluded.tracking_doubt",
                (lineage_id, reason),
            )
            connection.executemany(
                "INSERT OR IGNORE INTO suspect_points (point_id, reason) VALUES (?,?)",
                [(point_id, reason) for point_id in suspects],
            )

    def trust_tracking_again(self, lineage_id: LineageId) -> None:
        """It was switched off, and what it begins anew with stands on nothing that it told before."""
        with self._database.transaction() as connection:
            connection.execute(
                "UPDATE lineages SET tracking_doubt = '' WHERE lineage_id = ?", (lineage_id,)
            )

    def suspects(self) -> dict[str, str]:
        """Points in doubt, and why."""
        rows = self._database.execute("SELECT point_id, reason FROM suspect_points").fetchall()
        return {str(row[0]): str(row[1]) for row in rows}

    def of_lineage(self, lineage_id: LineageId) -> list[PointRow]:
        """Newest first."""
        return self._select(
            "WHERE lineage_id = ? ORDER BY created_at DESC, point_id DESC", (lineage_id,)
        )

    def add_restored_disks(self, lineage_id: LineageId, uuids: Mapping[int, str]) -> None:
        """Disks of ours that a VM has now, by device key; twice is harmless."""
        with self._database.transaction() as connection:
            connection.executemany(
                "INSERT OR IGNORE INTO restored_disks (lineage_id, device_key, uuid) VALUES (?,?,?)",
                [(lineage_id, key, uuid) for key, uuid in uuids.items()],
            )

    def disks_of(self, lineage_id: LineageId) -> set[tuple[int, str]]:
        """Device key and uuid of every disk that a point holds or a restore made. Raises: FormatError."""
        rows = self._database.execute(
            "SELECT device_key, uuid FROM restored_disks WHERE lineage_id = ?", (lineage_id,)
        ).fetchall()
        found = {(int(key), str(uuid)) for key, uuid in rows}
        for point in self._select("WHERE lineage_id = ?", (lineage_id,)):
            found |= {(disk.device_key, disk.uuid) for disk in point.decoded().disks}
        return found

    def lineages(self) -> list[LineageId]:
        """All that have points."""
        rows = self._database.execute("SELECT DISTINCT lineage_id FROM points ORDER BY 1")
        return [LineageId(row[0]) for row in rows.fetchall()]

    def point(self, point_id: str) -> PointRow:
        """By id, or by the last characters of one (at least 6). Raises: NotFound."""
        rows = self._select("WHERE point_id = ?", (point_id,))
        if not rows and len(point_id) >= 6:
            rows = self._select("WHERE point_id LIKE ? ESCAPE '\\'", (f"%{_literal(point_id)}",))
        if len(rows) != 1:
            problem = "there is no such restore point" if not rows else "more than one point fits"
            raise NotFound(problem, point=point_id, advice="see `holdfast point list`")
        return rows[0]

    def points(self, *, instance_uuid: str = "", vm_name: str = "") -> list[PointRow]:
        """Newest first; of one VM when asked."""
        if instance_uuid:
            return self._select(
                "WHERE instance_uuid = ? ORDER BY created_at DESC, point_id DESC",
                (instance_uuid,),
            )
        if vm_name:
            return self._select(
                "WHERE vm_name = ? ORDER BY created_at DESC, point_id DESC", (vm_name,)
            )
        return self._select("ORDER BY created_at DESC, point_id DESC", ())

    def latest(self, lineage_id: LineageId) -> PointRow | None:
        """The newest point of a lineage; None: it has none."""
        rows = self._select(
            "WHERE lineage_id = ? ORDER BY created_at DESC, point_id DESC LIMIT 1", (lineage_id,)
        )
        return rows[0] if rows else None

    def latest_full(self, lineage_id: LineageId) -> PointRow | None:
        """The newest point of a lineage that was read whole; None: it has none."""
        rows = self._select(
            "WHERE lineage_id = ? AND json_extract(record, '$.level') = 'full'"
            " ORDER BY created_at DESC, point_id DESC LIMIT 1",
            (lineage_id,),
        )
        return rows[0] if rows else None

    def last_full_at(self, lineage_id: LineageId) -> str:
        """When the lineage was last read whole (UTC text), as far as its jobs are known; else its oldest point's time."""
        row = self._database.execute(
            "SELECT max(CASE jobs.level WHEN 'full' THEN points.created_at END), min(points.created_at)"
            " FROM points LEFT JOIN jobs USING (job_id) WHERE points.lineage_id = ?",
            (lineage_id,),
        ).fetchone()
        return str(row[0] or row[1] or "")

    def of_job(self, job_id: JobId) -> PointRow | None:
        """The point that a job committed; None: none is known."""
        rows = self._select("WHERE job_id = ?", (job_id,))
        return rows[0] if rows else None

    def _select(self, where: str, values: Sequence[object]) -> list[PointRow]:
        columns = ", ".join(PointRow.__slots__)
        rows = self._database.execute(f"SELECT {columns} FROM points {where}", tuple(values))  # noqa: S608 - constant texts
        return [
            PointRow(**dict(zip(PointRow.__slots__, row, strict=True))) for row in rows.fetchall()
        ]


def _literal(text: str) -> str:
    return text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
