"""The nine ways of `tracking_bugs` on real disks of the lab: its tracking, the agent's backups with their audits.

A seed is one disk; those of a kind share a repository. Each point is restored and compared with the guest's log.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from holdfast_agent.pipelines.backup_disks import back_up_disks
from holdfast_agent.pipelines.restore_disks import restore_disks
from holdfast_common.extents import Extent
from holdfast_common.identity import PointId
from holdfast_common.job_spec import AreaSource, TrackingAudit
from holdfast_common.point_record import PointRecord
from holdfast_common.units import MIB
from holdfast_controller.decide.confidence import Evidence, point_confidence, point_evidence
from holdfast_controller.decide.level import (
    FULL,
    INCREMENTAL,
    PreviousDisk,
    PreviousPoint,
    decide_level,
    host_build_text,
)
from holdfast_controller.decide.suspects import PointReading, suspect_points
from holdfast_controller.facts import DiskFacts, HostFacts
from holdfast_lab.storage.disk import LabDisk
from holdfast_lab.storage.disk_values import DatastoreKind
from holdfast_lab.storage.errors import ChangeIdUnknown
from holdfast_lab.storage.runs import Area
from support.backup_jobs import Site, direct_ticket, disk_uuid, point_of
from support.tracking_bugs import BAD_HOST, DISK, HOST, LINK, VMFS, Bug, Tally

CAPACITY = 12 * MIB
GROWN = 20 * MIB
BOUNDARY = 16 * MIB  # instead of 128 GiB
PIECE = 64 * 1024
ALL = 1_000_000
SAMPLE = 250_000  # of three units; the default would look at one of them in a hundred backups
Lie = Callable[[Sequence[Area]], Sequence[Area]]


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskPoint:
    """A committed point; ``is_right``: its restored disk is what the guest had written."""

    point_id: PointId
    facts: PreviousPoint
    evidence: Evidence
    read_by_hint: bool
    lied: bool
    is_right: bool


@dataclass
class LabVm:
    """One disk of the lab and its points. ``links``: what a snapshot freezes, base first."""

    site: Site
    key: int
    disk: LabDisk
    chance: random.Random
    links: tuple[str, ...]
    points: list[DiskPoint] = field(default_factory=list)
    suspects: set[PointId] = field(default_factory=set)
    host: HostFacts = HOST
    tree: str = "at root"
    on_vmfs: bool = True
    doubt: str = ""
    wrong_claims: int = 0  # at the moment of the backup: a later audit may take a claim back

    def write(self, count: int = 4) -> None:
        """As the guest, far enough apart that each is an area of its own."""
        for number in self.chance.sample(range(0, CAPACITY // PIECE, 3), count):
            self.disk.guest_write(number * PIECE, self.chance.randbytes(4096))

    def back_up(self, share: int, *, level: str = INCREMENTAL, lie: Lie | None = None) -> DiskPoint:
        """One point, as the product decides."""
        frozen = self.disk.freeze()
        facts = replace(
            DISK,
            device_key=self.key,
            backing_uuid=disk_uuid(self.key),
            capacity_bytes=self.disk.capacity_bytes,
            chain=tuple(replace(LINK, path=path) for path in self.links),
            change_id=frozen.change_id or "",
        )
        before = self.points[-1] if self.points else None
        decided = decide_level(
            disks=[facts],
            snapshot_tree=self.tree,
            host=self.host,
            vmfs_datastores={VMFS} if self.on_vmfs else (),
            previous=before.facts if before else None,
            level_asked=level,
            full_needed=self.doubt,
            is_doubted=bool(self.doubt),
        ).disks[0]
        areas, told = decided.areas, self._told(decided.since, frozen.descriptor, lie)
        if areas is AreaSource.EVERYTHING or told is None:
            areas, told = AreaSource.EVERYTHING, []
        work = self.site.backup_work(
            [
                self.site.disk_to_back_up(
                    self.key,
                    areas=areas,
                    areas_reason=decided.reason,
                    change_id=facts.change_id,
                    ticket=direct_ticket(*self.links),
                )
            ],
            previous=before.point_id if before and level != FULL else None,
            level=level,
        )
        audit = TrackingAudit(share_millionths=share, turn=self.chance.randrange(1000))
        context = self.site.context(extents={self.key: told})
        result = back_up_disks(self.site.spec(replace(work, audit=audit)), context)
        record = PointRecord.decode(result.record)
        (read,) = record.disks
        made = DiskPoint(
            point_id=point_of(result),
            facts=self._previous(facts),
            evidence=point_evidence(record.disks, before.evidence if before else None),
            read_by_hint=read.seen_bytes is not None and read.seen_bytes < read.capacity_bytes,
            lied=bool(read.untold_bytes),
            is_right=self._is_right(point_of(result), frozen.sequence),
        )
        self.disk.release(frozen.descriptor)
        if made.lied:
            self._found()
        self.points.append(made)
        self.wrong_claims += self.claims(made) and not made.is_right
        return made

    def claims(self, point: DiskPoint) -> bool:
        """Whether `point show` calls it proven."""
        return point.point_id not in self.suspects and point_confidence(point.evidence) == 1.0

    def _told(self, since: str, link: Path, lie: Lie | None) -> list[Extent] | None:
        """None: a fault, or one area over all of ``*``."""
        if not since:
            return None
        with suppress(ChangeIdUnknown):
            areas = self.disk.query(since, link, distort=lie).areas
            if since == "*" and [each.length for each in areas] == [self.disk.capacity_bytes]:
                return None
            return [Extent(offset=each.offset, length=each.length) for each in areas]
        return None

    def _previous(self, facts: DiskFacts) -> PreviousPoint:
        disk = PreviousDisk(
            device_key=self.key,
            backing_uuid=facts.backing_uuid,
            capacity_bytes=facts.capacity_bytes,
            chain=tuple(link.location for link in facts.chain),
            change_id=facts.change_id,
        )
        return PreviousPoint(
            disks=(disk,), snapshot_tree=self.tree, host_build=host_build_text(self.host)
        )

    def _is_right(self, point_id: PointId, sequence: int) -> bool:
        name = f"{point_id}.vmdk"
        work = self.site.restore_work(point_id, {self.key: self.site.file_ticket(name)})
        restore_disks(self.site.spec(work), self.site.context())
        flat = self.site.root / "restores" / f"{point_id}-flat.vmdk"
        try:
            return self.disk.first_difference(flat, sequence) is None
        finally:
            flat.unlink()

    def _found(self) -> None:
        readings = [
            PointReading(
                point_id=each.point_id,
                by_hint=frozenset({self.key} if each.read_by_hint else ()),
            )
            for each in reversed(self.points)
        ]
        self.suspects |= {PointId(each) for each in suspect_points(readings, [self.key])}
        self.doubt = "an audit found a lie"


def run_disk_seed(site: Site, bug: Bug, seed: int, tally: Tally) -> None:
    """One history on one disk: see `tracking_bugs.run_seed`."""
    is_honest, shows = seed % 4 == 0, seed % 4 == 1
    vm = _new_vm(site, bug, seed)
    vm.write(12)
    lies_in_full = bug is Bug.C7 and not is_honest
    first = vm.back_up(
        SAMPLE, level=FULL, lie=_one_area if shows else _lie(vm) if lies_in_full else None
    )
    if lies_in_full and shows:
        tally.signs += 1
        tally.signs_seen += first.is_right and vm.claims(first)
    elif not lies_in_full:
        vm.write()
        honest = vm.back_up(ALL)
        tally.honest_points += 1
        tally.honest_claims += vm.claims(honest)
    vm.write()
    is_shown = shows and not lies_in_full
    if is_shown:
        _show(vm, bug)
    silent = not is_honest and not shows and not lies_in_full
    lie = _one_area if is_shown and bug is Bug.C6 else _lie(vm) if silent else None
    sampled = vm.back_up(SAMPLE, lie=lie)
    if is_shown:
        tally.signs += 1
        tally.signs_seen += sampled.is_right
    audited = vm.back_up(ALL)  # nothing was written meanwhile that would cover a lie up
    assert audited.is_right
    tally.under_reports += not sampled.is_right
    tally.found_by_full += not sampled.is_right and audited.lied and sampled.point_id in vm.suspects
    if is_honest:
        assert not vm.suspects, "who tells the truth is not doubted"
        tally.honest_points += 1
        tally.honest_claims += vm.claims(audited)
    if vm.doubt:
        assert vm.claims(vm.back_up(0)), "everything is read"
    tally.seeds += 1
    tally.points += len(vm.points)
    tally.claims += sum(vm.claims(each) for each in vm.points)
    tally.wrong_claims += vm.wrong_claims
    tally.wrong_claims += sum(vm.claims(each) and not each.is_right for each in vm.points)
    vm.disk.close()


def _new_vm(site: Site, bug: Bug, seed: int) -> LabVm:
    key = 2000 + seed
    kind = DatastoreKind.NFS if bug is Bug.C6 else DatastoreKind.VMFS
    disk = LabDisk.create(
        site.root / "nfs" / "web",
        f"disk-{key}",
        CAPACITY,
        guest_log=site.root / "guest" / str(key),
        datastore_kind=kind,
        uuid=disk_uuid(key),
    )
    site.disks[key] = CAPACITY
    links: tuple[str, ...] = (f"web/disk-{key}.vmdk",)
    vm = LabVm(site, key, disk, random.Random(f"{bug} {seed}"), links)
    vm.on_vmfs = kind is DatastoreKind.VMFS
    if bug in (Bug.C3, Bug.C4):  # a snapshot of the user's
        vm.write(3)
        users = disk.freeze()
        vm.links = (*links, f"web/{users.tip.name}")
        vm.tree = "root>snapshot-1 at snapshot-1"
    disk.enable_tracking()
    disk.stun()
    return vm


def _lie(vm: LabVm) -> Lie:
    """One or two areas are left out."""
    count = vm.chance.randint(1, 2)
    place = vm.chance.random()

    def left_out(areas: Sequence[Area]) -> Sequence[Area]:
        first = int(place * (len(areas) - count + 1))
        return [*areas[:first], *areas[first + count :]]

    return left_out


def _one_area(areas: Sequence[Area]) -> Sequence[Area]:
    return [Area(0, CAPACITY)]


def _show(vm: LabVm, bug: Bug) -> None:
    """What vSphere does then to the disk, and shows of it."""
    disk = vm.disk
    match bug:
        case Bug.C1:
            disk.extend(GROWN)
            vm.site.disks[vm.key] = GROWN
        case Bug.C2:
            vm.host = BAD_HOST
        case Bug.C3:
            users = disk.freeze()
            vm.write(2)
            vm.links = (*vm.links, f"web/{users.tip.name}")
        case Bug.C4:
            base = disk.frozen_descriptor(disk.truth_sequence(_path(vm, vm.links[0])))
            tip = disk.revert(base)
            vm.links = (vm.links[0], f"web/{tip.name}")
        case Bug.C5:
            disk.unclean_stop()
            disk.power_on()
        case Bug.C8:
            disk.disable_tracking()
        case Bug.C9:
            folder = vm.site.root / "nfs" / "moved"
            folder.mkdir(exist_ok=True)
            disk.move(folder)
            vm.links = (f"moved/disk-{vm.key}.vmdk",)
        case _:
            pass  # the answer itself shows it
    vm.disk.stun()


def _path(vm: LabVm, link: str) -> Path:
    return vm.site.root / "nfs" / link
