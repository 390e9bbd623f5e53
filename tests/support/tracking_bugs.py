"""Nine ways in which change tracking was wrong in the field, on a modelled disk with a history of backups.

What decides is the product's: the level with its lineage, the audit's choice, the evidence, the suspects. Modelled
are the disk (a version per unit of an audit), the guest, and a vSphere that tells less than what changed.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from enum import StrEnum

import numpy as np
import numpy.typing as npt

from holdfast_agent.pipelines.tracking_audit import AUDIT_UNIT_BYTES, audit_sample
from holdfast_common.extents import Extent, merged
from holdfast_common.identity import DatastoreId
from holdfast_common.job_spec import AreaSource, TrackingAudit
from holdfast_common.point_record import DiskRecord
from holdfast_controller.decide.confidence import (
    DiskEvidence,
    Evidence,
    point_confidence,
    point_evidence,
)
from holdfast_controller.decide.level import (
    FULL,
    INCREMENTAL,
    PreviousDisk,
    PreviousPoint,
    decide_level,
    host_build_text,
)
from holdfast_controller.decide.suspects import PointReading, suspect_points
from holdfast_controller.facts import ChainLink, DiskFacts, HostFacts

UNITS = 128
KEY = 2000
ALL = 1_000_000
SAMPLE = 10_000  # millionths: the default share
TURNS = ALL // SAMPLE
VMFS = DatastoreId("ds:///vmfs/volumes/1/")
Versions = npt.NDArray[np.int64]


class Bug(StrEnum):
    """What goes wrong."""

    C1 = "C1"  # the disk grows past a boundary, and its marks are lost
    C2 = "C2"  # writes during a consolidation are not told
    C3 = "C3"  # tracking was switched on under a snapshot
    C4 = "C4"  # the VM was reverted
    C5 = "C5"  # tracking was begun anew after a lost host
    C6 = "C6"  # a datastore that is no VMFS: one area over all, or too few of them
    C7 = "C7"  # what is allocated leaves out what is
    C8 = "C8"  # the host's memory for tracking ran out
    C9 = "C9"  # the disk was moved, and comes with other ids


LINK = ChainLink(
    datastore_id=VMFS, datastore_moref="datastore-1", datastore_name="vmfs1", path="web/web.vmdk"
)
DISK = DiskFacts(
    device_key=KEY,
    backing_uuid="6000C29",
    label="Hard disk 1",
    capacity_bytes=UNITS * AUDIT_UNIT_BYTES,
    sector_bytes=512,
    chain=(LINK,),
    change_id="52 aa/1",
    mode="persistent",
    sharing="sharingNone",
    thin=True,
    raw_mapping="",
    encrypted=False,
    controller_key=1000,
    bus_number=0,
    unit_number=0,
    adapter="pvscsi",
    bus_sharing="noSharing",
    unprotected_reason="",
)
HOST = HostFacts(
    moref="host-1",
    name="esx1",
    connection_state="connected",
    in_maintenance=False,
    version="8.0.1",
    build="21495797",
    compute_moref="domain-1",
    hardware_uuid="",
    certificate_sha256="",
    datastore_morefs=(),
)
BAD_HOST = replace(HOST, version="6.0.0", build="3029758")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelPoint:
    """A point, and what the disk held at its moment."""

    name: str
    held: Versions
    truth: Versions
    facts: PreviousPoint
    evidence: Evidence
    read_by_hint: bool
    lied: bool

    @property
    def is_right(self) -> bool:
        """Whether it differs in nothing from the disk."""
        return np.array_equal(self.held, self.truth)


@dataclass
class Tally:
    """What all seeds of a kind came to. ``expected``: by the formula, of as many samples as were drawn."""

    seeds: int = 0
    points: int = 0
    claims: int = 0
    wrong_claims: int = 0
    honest_points: int = 0
    honest_claims: int = 0
    signs: int = 0
    signs_seen: int = 0
    under_reports: int = 0
    found_by_full: int = 0
    samples: int = 0
    found_by_sample: int = 0
    expected: float = 0.0

    def row(self, name: str) -> str:
        """For people."""
        return (
            f"{name}: seeds {self.seeds} points {self.points} claims {self.claims}"
            f" wrong claims {self.wrong_claims} honest {self.honest_claims}/{self.honest_points}"
            f" signs {self.signs_seen}/{self.signs}"
            f" under-reports {self.under_reports} found by the full audit {self.found_by_full}"
            + self._sampled()
        )

    def _sampled(self) -> str:
        if not self.samples:
            return ""
        return (
            f" by samples {self.found_by_sample}/{self.samples} by the formula {self.expected:.1f}"
        )


@dataclass
class ModelledVm:
    """One disk, its tracking, and the points of it."""

    random: random.Random
    disk: DiskFacts
    truth: Versions
    points: list[ModelPoint] = field(default_factory=list)
    suspects: set[str] = field(default_factory=set)
    host: HostFacts = HOST
    tree: str = "at root"
    doubt: str = ""
    epoch: int = 1
    changed: set[int] = field(default_factory=set)  # units, as vSphere would tell them now
    hides_allocated: set[int] = field(default_factory=set)
    tells_one_area: bool = False
    wrong_claims: int = 0  # at the moment of the backup: a later audit may take a claim back

    def write(self, units: set[int], *, told: bool = True) -> None:
        """As the guest, to these units."""
        self.epoch += 1
        self.truth[list(units)] = self.epoch
        if told:
            self.changed |= units

    def back_up(self, share: int, *, level: str = INCREMENTAL, turn: int = 0) -> ModelPoint:
        """One point, as the product decides; its audit reads that share."""
        facts = replace(
            self.disk,
            change_id=f"{self.disk.change_id.partition('/')[0]}/{self.epoch}"
            if self.disk.change_id
            else "",
        )
        before = self.points[-1] if self.points else None
        decided = decide_level(
            disks=[facts],
            snapshot_tree=self.tree,
            host=self.host,
            vmfs_datastores={VMFS},
            previous=before.facts if before else None,
            level_asked=level,
            full_needed=self.doubt,
            is_doubted=bool(self.doubt),
        ).disks[0]
        capacity = self.disk.capacity_bytes
        seen, audited, lied = capacity, 0, False
        held = self.truth.copy()
        if decided.areas is AreaSource.CHANGED:
            assert before is not None
            told = self._told()
            sample = self._sample(share, turn)
            lied = any(held[unit] != before.held[unit] for unit in sample - told)
            if not lied:
                kept = [unit for unit in range(len(held)) if unit not in told]
                held[kept] = before.held[kept]
                audited = len(sample - told) * AUDIT_UNIT_BYTES
                seen = len(told) * AUDIT_UNIT_BYTES + audited
        elif decided.areas is AreaSource.ALLOCATED:
            hidden = set() if self.tells_one_area else self.hides_allocated
            allocated = {unit for unit in range(len(held)) if held[unit]} - hidden
            held[[unit for unit in range(len(held)) if unit not in allocated]] = 0
            seen = capacity if self.tells_one_area else len(allocated) * AUDIT_UNIT_BYTES
        record = DiskRecord(
            device_key=KEY,
            uuid=self.disk.backing_uuid,
            label=self.disk.label,
            capacity_bytes=capacity,
            level_reason="the audit found a lie" if lied else decided.reason,
            audited_bytes=audited,
            seen_bytes=seen,
        )
        made = ModelPoint(
            name=f"p{len(self.points)}",
            held=held,
            truth=self.truth.copy(),
            facts=self._previous(facts),
            evidence=point_evidence([record], before.evidence if before else None),
            read_by_hint=seen < capacity,
            lied=lied,
        )
        if lied:
            self._found()
        self.points.append(made)
        self.wrong_claims += self.claims(made) and not made.is_right
        self.changed = set()
        return made

    def found_by_turns(self, before: ModelPoint) -> tuple[int, float]:
        """Of one cycle of audits: how many would find that ``before`` was lied about; and how many should."""
        wrong = {unit for unit in range(len(self.truth)) if self.truth[unit] != before.held[unit]}
        wrong -= self._told()
        share = 1 / TURNS
        missed = 1 - (DiskEvidence(shares=(share,)).confidence or 0.0)
        found = sum(bool(self._sample(SAMPLE, turn) & wrong) for turn in range(TURNS))
        assert found, "as many audits as there are shares have read everything"
        return found, TURNS * (1 - missed ** len(wrong))

    def claims(self, point: ModelPoint) -> bool:
        """Whether `point show` calls it proven."""
        return point.name not in self.suspects and point_confidence(point.evidence) == 1.0

    def _told(self) -> set[int]:
        return set(range(len(self.truth))) if self.tells_one_area else self.changed

    def _sample(self, share: int, turn: int) -> set[int]:
        told = merged(
            Extent(offset=unit * AUDIT_UNIT_BYTES, length=AUDIT_UNIT_BYTES)
            for unit in sorted(self._told())
        )
        chosen = audit_sample(
            TrackingAudit(share_millionths=share, turn=turn),
            disk_uuid=self.disk.backing_uuid,
            capacity_bytes=self.disk.capacity_bytes,
            changed=told,
        )
        return {
            unit
            for each in chosen
            for unit in range(each.offset // AUDIT_UNIT_BYTES, -(-each.end // AUDIT_UNIT_BYTES))
        }

    def _previous(self, facts: DiskFacts) -> PreviousPoint:
        return PreviousPoint(
            disks=(
                PreviousDisk(
                    device_key=KEY,
                    backing_uuid=facts.backing_uuid,
                    capacity_bytes=facts.capacity_bytes,
                    chain=tuple(link.location for link in facts.chain),
                    change_id=facts.change_id,
                ),
            ),
            snapshot_tree=self.tree,
            host_build=host_build_text(self.host),
        )

    def _found(self) -> None:
        readings = [
            PointReading(point_id=each.name, by_hint=frozenset({KEY} if each.read_by_hint else ()))
            for each in reversed(self.points)
        ]
        self.suspects |= set(suspect_points(readings, [KEY]))
        self.doubt = "an audit found a lie"


def run_seed(bug: Bug, seed: int, tally: Tally) -> None:
    """One history: a full, an honest incremental, the bug (or none), audits, and tracking begun anew."""
    chance = random.Random(f"{bug} {seed}")
    is_honest = seed % 4 == 0
    shows = seed % 4 == 1  # what vSphere tells of the VM betrays the bug
    vm = ModelledVm(
        random=chance,
        disk=replace(DISK, backing_uuid=f"6000C29{seed}"),
        truth=np.zeros(UNITS, np.int64),
    )
    vm.write(set(chance.sample(range(UNITS), 70)))
    if bug is Bug.C7 and not is_honest:
        used = [unit for unit in range(UNITS) if vm.truth[unit]]
        vm.hides_allocated = set(chance.sample(used, chance.randint(1, 12)))
        vm.tells_one_area = shows
        tally.signs += shows
    first = vm.back_up(SAMPLE, level=FULL)
    vm.tells_one_area = False
    if bug is not Bug.C7 or is_honest:
        vm.write(set(chance.sample(range(UNITS), 9)))
        honest = vm.back_up(ALL, turn=1)
        tally.honest_points += 1
        tally.honest_claims += vm.claims(honest)
    elif shows:
        tally.signs_seen += first.is_right and vm.claims(first)
    if not is_honest and bug is not Bug.C7:
        _strike(vm, bug, shows=shows, tally=tally)
    vm.write(set(chance.sample(sorted(_untouched(vm)), 3)))
    if not is_honest and not shows:
        found, expected = vm.found_by_turns(vm.points[-1])
        tally.samples += TURNS
        tally.found_by_sample += found
        tally.expected += expected
    sampled = vm.back_up(SAMPLE, turn=chance.randrange(1000))
    if shows and bug is not Bug.C7:
        tally.signs_seen += sampled.is_right
    vm.tells_one_area = False
    under = not sampled.is_right
    vm.write(set(chance.sample(sorted(_untouched(vm)), 3)))
    audited = vm.back_up(ALL)
    tally.under_reports += under
    tally.found_by_full += under and audited.lied and sampled.name in vm.suspects
    assert audited.is_right
    if is_honest:
        assert not vm.suspects, "who tells the truth is not doubted"
        tally.honest_points += 1
        tally.honest_claims += vm.claims(audited)
    if vm.doubt:
        vm.disk = replace(vm.disk, change_id="")  # tracking was switched off for this one
        assert vm.claims(vm.back_up(0)), "everything is read"
    _count_points(vm, tally)


def _count_points(vm: ModelledVm, tally: Tally) -> None:
    tally.seeds += 1
    tally.points += len(vm.points)
    tally.claims += sum(vm.claims(each) for each in vm.points)
    tally.wrong_claims += vm.wrong_claims
    tally.wrong_claims += sum(vm.claims(each) and not each.is_right for each in vm.points)


def _untouched(vm: ModelledVm) -> set[int]:
    """Units in which no earlier lie is covered up by what is written now."""
    return {unit for unit in range(UNITS) if vm.truth[unit] == vm.points[-1].held[unit]}


def _strike(vm: ModelledVm, bug: Bug, *, shows: bool, tally: Tally) -> None:
    lost = set(vm.random.sample(range(UNITS), vm.random.randint(1, 12)))
    if bug is Bug.C4:  # a revert writes as well, and nobody marks it
        older = vm.points[0].truth
        lost = {unit for unit in range(UNITS) if older[unit] != vm.truth[unit]}
        vm.truth = older.copy()
        if not lost:
            raise AssertionError("a revert that changes nothing shows nothing")
    else:
        vm.write(lost, told=False)
    if shows:
        tally.signs += 1
        _show(vm, bug)


def _show(vm: ModelledVm, bug: Bug) -> None:
    disk = vm.disk
    other = replace(LINK, path="web/web-000001.vmdk")
    match bug:
        case Bug.C1:
            vm.disk = replace(disk, capacity_bytes=disk.capacity_bytes + AUDIT_UNIT_BYTES)
            vm.truth = np.append(vm.truth, 0)
        case Bug.C2:
            vm.host = BAD_HOST
        case Bug.C3:
            vm.disk = replace(disk, chain=(LINK, other))
        case Bug.C4:
            vm.tree = "root>snapshot-7 at snapshot-7"
        case Bug.C5:
            vm.disk = replace(disk, change_id="52 bb/1")
        case Bug.C6:
            vm.tells_one_area = True
        case Bug.C8:
            vm.disk = replace(disk, change_id="")
        case _:
            vm.disk = replace(disk, backing_uuid=f"{disk.backing_uuid}-moved", chain=(other,))
