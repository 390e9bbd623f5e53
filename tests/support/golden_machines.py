"""The golden repository of two virtual machines with incrementals, several disks and trees of three levels.

`python tests/support/golden_machines.py` (with PYTHONPATH as pytest has it) writes it if it is missing. It is
never changed: repositories like it lie in the world.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from holdfast_common.identity import JobId
from holdfast_common.repository.manifest import ManifestFacts
from holdfast_common.repository.points import Point
from support.golden_repository import GOLDEN, noise, text
from support.memory_store import MemoryStore
from support.repositories import BLOCK, Repository, disk_header, new_repository

NAME = "format-1-machines"
MIB = 1024 * 1024
GIB = 1024 * MIB
WEB, MAIL = "vcenter-1/5028-web", "vcenter-1/5028-mail"
LINEAGES = {WEB: "web", MAIL: "mail"}


@dataclass(frozen=True, slots=True)
class Disk:
    """A disk of which only some places are not zero."""

    capacity_bytes: int
    pieces: dict[int, bytes] = field(default_factory=dict)

    def with_pieces(self, changed: dict[int, bytes]) -> Disk:
        return Disk(self.capacity_bytes, {**self.pieces, **changed})

    def write_sparse(self, path: Path) -> None:
        """The whole disk as a file, with holes where it is zero, up to a whole sector."""
        with path.open("wb") as file:
            for offset, data in self.pieces.items():
                file.seek(offset)
                file.write(data)
            file.truncate(-(-self.capacity_bytes // 512) * 512)


@dataclass(frozen=True, slots=True)
class Step:
    """One backup: what is written to which disk, and what the disks are afterwards."""

    job_id: str
    lineage: str
    level: str
    disks: dict[int, Disk]
    written: dict[int, dict[int, bytes]]
    blobs: dict[str, bytes] = field(default_factory=dict)


def steps() -> list[Step]:
    """Two VMs: three points of one with two disks, two of the other with an odd disk."""
    web_system = Disk(
        40 * MIB,
        {
            0: text(3 * BLOCK, "boot"),
            5 * MIB: noise(BLOCK + 512, "config") + bytes(BLOCK - 512),
            33 * MIB: text(20 * BLOCK, "log"),
        },
    )
    web_data = Disk(
        5 * GIB, {64 * BLOCK: noise(2 * BLOCK, "row"), 4 * GIB + MIB: text(BLOCK, "far")}
    )
    mail = Disk(2 * MIB + 1536, {0: text(2 * BLOCK, "boot"), 2 * MIB: noise(1536, "tail")})
    changed = {33 * MIB: text(BLOCK, "log 2"), MIB: noise(BLOCK, "new")}
    web_system_2 = web_system.with_pieces(
        {MIB: changed[MIB], 33 * MIB: text(BLOCK, "log 2") + text(20 * BLOCK, "log")[BLOCK:]}
    )
    far = {4 * GIB + MIB: bytes(BLOCK), 3 * GIB: text(BLOCK, "third")}
    web_data_3 = Disk(5 * GIB, {64 * BLOCK: noise(2 * BLOCK, "row"), 3 * GIB: far[3 * GIB]})
    mail_2 = mail.with_pieces({BLOCK * 16: text(BLOCK, "inbox")})
    vmx = text(700, "vmx")
    return [
        Step(
            "JOB00001",
            WEB,
            "full",
            {2000: web_system, 2001: web_data},
            {2000: web_system.pieces, 2001: web_data.pieces},
            {"vmx": vmx, "nvram": noise(8684, "nvram"), "ovf": text(3000, "ovf")},
        ),
        Step(
            "JOB00002",
            MAIL,
            "full",
            {2000: mail},
            {2000: mail.pieces},
            {"vmx": text(800, "mail vmx")},
        ),
        Step(
            "JOB00003",
            WEB,
            "incremental",
            {2000: web_system_2, 2001: web_data},
            {2000: changed, 2001: {}},
            {"vmx": vmx},
        ),
        Step(
            "JOB00004",
            WEB,
            "incremental",
            {2000: web_system_2, 2001: web_data_3},
            {2000: {}, 2001: far},
        ),
        Step(
            "JOB00005",
            MAIL,
            "incremental",
            {2000: mail_2},
            {2000: {BLOCK * 16: text(BLOCK, "inbox")}},
        ),
    ]


def built() -> tuple[MemoryStore, Repository]:
    store = MemoryStore()
    repository = new_repository(store, seed="machines")
    newest: dict[str, Point] = {}
    for order, step in enumerate(steps(), 1):
        repository.clock.advance(3600)
        newest[step.lineage] = _backed_up(repository, step, order, newest.get(step.lineage))
    return store, repository


def _backed_up(repository: Repository, step: Step, order: int, before: Point | None) -> Point:
    with repository.writer(job_id=JobId(step.job_id), lineage=step.lineage) as writer:
        for number, (device_key, disk) in enumerate(step.disks.items()):
            header = disk_header(disk.capacity_bytes, device_key=device_key)
            begun = writer.begin_disk(header, previous=before.disks[number] if before else None)
            for offset, data in sorted(step.written[device_key].items()):
                begun.write(offset, memoryview(data))
            begun.finish()
        for kind, data in step.blobs.items():
            writer.add_blob(kind, data)
        facts = ManifestFacts(
            order=order, level_done=step.level, vm={"name": LINEAGES[step.lineage]}
        )
        prepared = writer.prepare(facts)
        point_id = writer.publish(prepared, repository.grant(prepared))
    with repository.reader(step.lineage) as reader:
        return reader.load_point(point_id)


def main() -> None:
    directory = GOLDEN / NAME
    if directory.exists():
        return
    store, repository = built()
    for object_name, data in store.objects.items():
        path = directory / object_name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    (GOLDEN / f"{NAME}.recovery").write_text(repository.sheet.key_text() + "\n")


if __name__ == "__main__":
    main()
