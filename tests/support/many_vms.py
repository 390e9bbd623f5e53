"""A database of a controller with many VMs, written straight into its tables: nobody waits for 10,000 backups."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

import msgspec

from holdfast_common.clock import utc_text
from holdfast_common.identity import JobId, LineageId, PointId, RepositoryId
from holdfast_controller.facts import ServerFacts
from holdfast_controller.store.catalogue import PointRow
from holdfast_controller.store.database import Database
from holdfast_controller.store.inventory import Surroundings
from support.vm_facts import VM

VCENTER_UUID = "vc-uuid"


def add_vcenter(database: Database) -> None:
    """One, that VMs can be in; twice is harmless."""
    database.execute(
        "INSERT OR IGNORE INTO vcenters (vcenter_id, name, host, port, user_name, sealed_password,"
        " certificate_sha256, instance_uuid, product, version, is_vcenter, added_at, checked_at,"
        " last_error) VALUES ('vc', 'main', 'h', 443, 'u', x'00', 'c', ?, 'p', 'v', 1, '', '', '')",
        (VCENTER_UUID,),
    )


def lineage(number: int) -> LineageId:
    return LineageId(f"{VCENTER_UUID}/uuid-{number}")


def add_vms(database: Database, numbers: range, *, taken_at: datetime) -> None:
    """VMs of that vCenter, none with a point."""
    around = Surroundings(
        server=ServerFacts(
            instance_uuid=VCENTER_UUID, product="p", version="v", build="1", is_vcenter=True
        ),
        hosts=(),
        datastores=(),
        places=(),
    )
    facts = {
        number: replace(
            VM, moref=f"vm-{number}", name=f"vm{number:05}", instance_uuid=f"uuid-{number}"
        )
        for number in numbers
    }
    with database.transaction() as connection:
        connection.executemany(
            "INSERT INTO inventory_vms VALUES ('vc',?,?,?,?,?)",
            [
                (vm.moref, vm.instance_uuid, vm.name, utc_text(taken_at), msgspec.json.encode(vm))
                for vm in facts.values()
            ],
        )
        connection.execute(
            "INSERT OR REPLACE INTO inventory_surroundings VALUES ('vc',?,?)",
            (utc_text(taken_at), msgspec.json.encode(around)),
        )


def add_point(database: Database, number: int, at: datetime, *, job_id: str = "") -> PointRow:
    """A point of the VM of that number."""
    row = point_row(number, at, job_id=job_id)
    add_points(database, [row])
    return row


def point_row(number: int, at: datetime, *, job_id: str = "", record_bytes: int = 0) -> PointRow:
    return PointRow(
        point_id=PointId(f"P{number}-{utc_text(at)}"),
        repository_id=RepositoryId("r"),
        lineage_id=lineage(number),
        job_id=JobId(job_id or f"J{number}-{utc_text(at)}"),
        vcenter_id=VCENTER_UUID,
        instance_uuid=f"uuid-{number}",
        vm_name=f"vm{number:05}",
        created_at=utc_text(at),
        record='{"level": "full"}' + " " * record_bytes,
    )


def add_points(database: Database, rows: list[PointRow]) -> None:
    """All at once."""
    with database.transaction() as connection:
        connection.executemany(
            "INSERT INTO points (point_id, repository_id, lineage_id, job_id, vcenter_id,"
            " instance_uuid, vm_name, created_at, record) VALUES (?,?,?,?,?,?,?,?,?)",
            [tuple(getattr(row, name) for name in PointRow.__slots__) for row in rows],
        )
        connection.executemany(
            "INSERT OR IGNORE INTO lineages (lineage_id, vcenter_id, instance_uuid, full_needed)"
            " VALUES (?,'','','')",
            [(row.lineage_id,) for row in rows],
        )


def nightly(numbers: range, *, newest: datetime, nights: int) -> list[PointRow]:
    """A point a night for each VM, with records as long as those of small VMs."""
    return [
        point_row(number, newest - timedelta(days=night), record_bytes=1500)
        for number in numbers
        for night in range(nights)
    ]
