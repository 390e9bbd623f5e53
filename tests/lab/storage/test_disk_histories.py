"""Random histories of a disk: at every step all links are true, and tracking tells enough."""

from __future__ import annotations

import random
import shutil
import tempfile
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from holdfast_lab.storage.disk import DatastoreKind, Frozen, LabDisk
from holdfast_lab.storage.readers import RawReader, pieces
from holdfast_lab.storage.runs import Area, union
from support.lab_disks import QEMU_IMG, assert_qemu_agrees, make_disk

LINKS_MOST = 6
GROWTHS_MOST = 2
GRANULARITY = 8 * 1024
SECTORS = 512


class DiskHistory(RuleBasedStateMachine):
    """Guest writes, snapshots, removals, reverts, growth and re-opening, in any order."""

    disk: LabDisk
    folder: Path

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="lab-history-"))
        self.made: dict[int, Frozen] = {}
        self.frozen: set[int] = set()  # those whose snapshot is still there
        self.growths = 0
        self.branch: list[int] = []  # snapshots below the tip since the last revert

    @initialize(
        sectors=st.sampled_from([1, 9, 63, 4096, 4097, 8192 * 4 + 5]),
        kind=st.sampled_from(list(DatastoreKind)),
    )
    def create(self, sectors: int, kind: DatastoreKind) -> None:
        self.disk = make_disk(self.folder, capacity=sectors * SECTORS, kind=kind)
        self.disk.enable_tracking(granularity=GRANULARITY)
        self.disk.stun()

    @rule(seed=st.integers(0, 2**20))
    def write(self, seed: int) -> None:
        """A burst: data and zeros, of few sectors and of many, near each other and anywhere."""
        chooser = random.Random(seed)
        sectors = self.disk.capacity_bytes // SECTORS
        for _ in range(chooser.randint(1, 6)):
            count = min(chooser.randint(1, chooser.choice([1, 20, 200, 3000])), sectors)
            last = sectors - count
            start = min(
                chooser.choice([0, chooser.randrange(40), chooser.randrange(last + 1)]), last
            )
            start = chooser.choice([start, start, last])
            if chooser.random() < 0.3:
                self.disk.guest_zero(start * SECTORS, count * SECTORS)
            else:
                self.disk.guest_write(start * SECTORS, chooser.randbytes(count * SECTORS))

    @precondition(lambda self: len(self.disk.all_links) < LINKS_MOST)
    @rule()
    def freeze(self) -> None:
        made = self.disk.freeze()
        self.made[made.sequence] = made
        self.frozen.add(made.sequence)
        self.branch.append(made.sequence)

    @precondition(lambda self: len(self.disk.all_links) < LINKS_MOST)
    @rule(before=st.integers(0, 2**20), meanwhile=st.integers(0, 2**20))
    def back_up(self, before: int, meanwhile: int) -> None:
        """What a backup does: a snapshot that goes after the guest wrote on."""
        self.write(before)
        made = self.disk.freeze()
        self.made[made.sequence] = made
        self.branch.append(made.sequence)
        self.write(meanwhile)
        self.disk.release(made.descriptor)

    @precondition(lambda self: self.frozen)
    @rule(choice=st.randoms(use_true_random=False), consolidate=st.booleans())
    def release(self, choice: random.Random, consolidate: bool) -> None:
        sequence = choice.choice(sorted(self.frozen))
        self.disk.release(self.disk.frozen_descriptor(sequence), consolidate=consolidate)
        self.frozen.remove(sequence)

    @rule()
    def consolidate(self) -> None:
        self.disk.consolidate()
        assert not self.disk.consolidation_needed
        if not self.frozen:
            assert len(self.disk.all_links) == 1

    @precondition(lambda self: self.frozen and len(self.disk.all_links) < LINKS_MOST)
    @rule(choice=st.randoms(use_true_random=False))
    def revert(self, choice: random.Random) -> None:
        sequence = choice.choice(sorted(self.frozen))
        below = self.disk.chain_of(self.disk.frozen_descriptor(sequence))
        self.disk.revert(self.disk.frozen_descriptor(sequence))
        # Ids of the abandoned branch answer wrongly from here on, as vSphere's do.
        self.branch = [
            number
            for number in self.branch
            if number in self.frozen and self.disk.frozen_descriptor(number) in below
        ]

    @precondition(lambda self: len(self.disk.all_links) == 1 and self.growths < GROWTHS_MOST)
    @rule(sectors=st.integers(1, 3000))
    def extend(self, sectors: int) -> None:
        self.disk.extend(self.disk.capacity_bytes + sectors * SECTORS)
        self.growths += 1
        self.branch = []  # a base of another size is no base

    @rule()
    def open_again(self) -> None:
        kind, log, tip = (
            self.disk.datastore_kind,
            self.disk.guest_log_directory,
            self.disk.tip_descriptor,
        )
        self.disk.close()
        self.disk = LabDisk.adopt(tip, guest_log=log, datastore_kind=kind)

    @invariant()
    def everything_is_true(self) -> None:
        with self.disk.reader_at() as reader:
            assert self.disk.first_difference(reader) is None
        for sequence in self.frozen:
            with self.disk.reader_at(self.disk.frozen_descriptor(sequence)) as reader:
                assert self.disk.first_difference(reader, sequence) is None

    @invariant()
    def change_tracking_covers_every_difference(self) -> None:
        if not self.branch:
            return
        base = self.folder / "base.raw"
        now = self.folder / "now.raw"
        self.disk.truth(now)
        for sequence in {self.branch[0], *self.branch[-2:]}:
            change_id = self.made[sequence].change_id
            assert change_id is not None
            self.disk.truth(base, sequence)
            areas = self.disk.query(change_id).areas
            for difference in differences(base, now):
                assert any(
                    area.offset <= difference.offset and difference.end <= area.end
                    for area in areas
                ), f"{difference} is missing after {sequence}"
            base.unlink()
        now.unlink()

    def teardown(self) -> None:
        if hasattr(self, "disk"):
            if QEMU_IMG is not None:
                assert_qemu_agrees(
                    self.disk, self.disk.tip_descriptor, self.folder, self.disk.sequence
                )
            self.disk.close()
        shutil.rmtree(self.folder)


def differences(one: Path, other: Path) -> list[Area]:
    """Sectors that differ."""
    found = []
    with RawReader(one) as left, RawReader(other) as right:
        for area in union(left.allocated(), right.allocated()):
            for at, length in pieces(area):
                first, second = bytearray(length), bytearray(length)
                left.read_into(at, memoryview(first))
                right.read_into(at, memoryview(second))
                if first != second:
                    found += [
                        Area(at + start, SECTORS)
                        for start in range(0, length, SECTORS)
                        if first[start : start + SECTORS] != second[start : start + SECTORS]
                    ]
    return found


class LongDiskHistory(DiskHistory):
    """The same, longer and more often."""


SUPPRESSED = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]

TestDiskHistory = DiskHistory.TestCase
TestDiskHistory.settings = settings(
    max_examples=40, stateful_step_count=12, deadline=None, suppress_health_check=SUPPRESSED
)
TestLongDiskHistory = pytest.mark.timeout(1200)(pytest.mark.long(LongDiskHistory.TestCase))
TestLongDiskHistory.settings = settings(
    max_examples=300, stateful_step_count=30, deadline=None, suppress_health_check=SUPPRESSED
)
