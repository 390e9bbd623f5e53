from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from pyVmomi import vim

from holdfast_common.errors import DiskMoved, SourceFailed, SourceGone
from holdfast_controller.facts import SnapshotFacts, VmFacts
from holdfast_controller.ledger import JobLedger
from holdfast_controller.vsphere import inventory, still_frozen
from holdfast_controller.vsphere.session import VsphereSession
from holdfast_controller.vsphere.snapshot import temporary_snapshot
from holdfast_controller.vsphere.still_frozen import check_still_frozen
from holdfast_lab.server import RunningLab
from support.vms import CRASH, chain_lengths, snapshot_names, vm_named
from support.vsphere_sessions import job_ledger, session_at

Frozen = tuple[VsphereSession, SnapshotFacts]


@pytest.fixture
def ledger(tmp_path: Path) -> JobLedger:
    return job_ledger(tmp_path)


@pytest.fixture
def frozen(lab: RunningLab, ledger: JobLedger) -> Iterator[Frozen]:
    with session_at(lab) as session:
        vm = vm_named(session, "db")
        with temporary_snapshot(session, ledger, vm=vm, wish=CRASH) as made:
            yield session, made
    assert snapshot_names(lab, "db") == ["before upgrade"]
    assert not ledger.open_entries()


def test_a_disk_that_stayed_frozen_is_good(frozen: Frozen) -> None:
    check_still_frozen(*frozen)


def test_a_snapshot_that_somebody_else_removed_voids_the_attempt(
    lab: RunningLab, frozen: Frozen
) -> None:
    session, made = frozen
    task = session.call(
        vim.vm.Snapshot(made.moref, None),
        "RemoveSnapshot_Task",
        removeChildren=False,
        consolidate=True,
    )
    session.wait_for_task(task, what="somebody removes our snapshot")
    # the frozen file is the live one again, so its name alone says nothing
    assert chain_lengths(lab, "db") == [2, 2]
    with pytest.raises(SourceFailed, match="removed by somebody else"):
        check_still_frozen(session, made)


def judged(frozen: Frozen, change: Callable[[VmFacts], VmFacts]) -> None:
    session, made = frozen
    still_frozen.judge(made, change(inventory.read_vm(session, made.vm.moref)))


def test_a_disk_that_runs_on_its_frozen_file_again_voids_the_attempt(frozen: Frozen) -> None:
    def merged(vm: VmFacts) -> VmFacts:
        return replace(vm, disks=tuple(replace(disk, chain=disk.chain[:-1]) for disk in vm.disks))

    with pytest.raises(SourceFailed, match="merged while they were read"):
        judged(frozen, merged)


def test_a_users_snapshot_that_was_merged_below_ours_voids_the_attempt(frozen: Frozen) -> None:
    def merged_below(vm: VmFacts) -> VmFacts:
        return replace(vm, disks=tuple(replace(disk, chain=disk.chain[1:]) for disk in vm.disks))

    with pytest.raises(SourceFailed, match="merged while they were read"):
        judged(frozen, merged_below)


def test_a_snapshot_that_was_made_on_top_of_ours_is_harmless(frozen: Frozen) -> None:
    def grown(vm: VmFacts) -> VmFacts:
        return replace(
            vm,
            disks=tuple(
                replace(
                    disk, chain=(*disk.chain, replace(disk.chain[-1], path="db/db-000009.vmdk"))
                )
                for disk in vm.disks
            ),
        )

    judged(frozen, grown)


def test_a_disk_that_moved_to_other_storage_voids_the_attempt(frozen: Frozen) -> None:
    def moved(vm: VmFacts) -> VmFacts:
        (first, *others) = vm.disks
        chain = tuple(replace(link, path=f"elsewhere/{link.path}") for link in first.chain)
        return replace(vm, disks=(replace(first, chain=chain), *others))

    with pytest.raises(DiskMoved):
        judged(frozen, moved)


def test_a_disk_that_was_removed_is_gone(frozen: Frozen) -> None:
    with pytest.raises(SourceGone):
        judged(frozen, lambda vm: replace(vm, disks=vm.disks[1:]))


def test_a_datastore_that_was_renamed_is_no_move(lab: RunningLab, frozen: Frozen) -> None:
    def renamed(vm: VmFacts) -> VmFacts:
        return replace(
            vm,
            disks=tuple(
                replace(
                    disk,
                    chain=tuple(replace(link, datastore_name="new name") for link in disk.chain),
                )
                for disk in vm.disks
            ),
        )

    judged(frozen, renamed)
