from __future__ import annotations

from dataclasses import replace

import pytest

from holdfast_common.identity import DatastoreId
from holdfast_common.job_spec import AreaSource
from holdfast_controller.decide import level
from holdfast_controller.decide.level import LevelDecision, PreviousDisk, PreviousPoint
from holdfast_controller.facts import ChainLink, DiskFacts, HostFacts, SnapshotNode

VMFS = DatastoreId("ds:///vmfs/volumes/1/")
BASE = ChainLink(
    datastore_id=VMFS, datastore_moref="datastore-1", datastore_name="vmfs1", path="web/web.vmdk"
)
DISK = DiskFacts(
    device_key=2000,
    backing_uuid="6000C29",
    label="Hard disk 1",
    capacity_bytes=1 << 30,
    sector_bytes=512,
    chain=(BASE,),
    change_id="52 aa/7",
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
BEFORE = PreviousDisk(
    device_key=2000,
    backing_uuid="6000C29",
    capacity_bytes=1 << 30,
    chain=(BASE.location,),
    change_id="52 aa/3",
)
TREE = "at root"
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
POINT = PreviousPoint(disks=(BEFORE,), snapshot_tree=TREE, host_build=level.host_build_text(HOST))


def decided(
    disk: DiskFacts = DISK,
    *,
    previous: PreviousPoint | None = POINT,
    tree: str = TREE,
    host: HostFacts = HOST,
    asked: str = "incremental",
    full_needed: str = "",
    is_doubted: bool = False,
) -> LevelDecision:
    return level.decide_level(
        disks=[disk],
        snapshot_tree=tree,
        host=host,
        vmfs_datastores={VMFS},
        previous=previous,
        level_asked=asked,
        full_needed=full_needed,
        is_doubted=is_doubted,
    )


def test_tracking_that_was_caught_is_not_believed_what_is_allocated_either() -> None:
    trusted = decided(asked="full")
    assert trusted.disks[0].areas is AreaSource.ALLOCATED
    doubted = decided(full_needed="it lied", is_doubted=True)
    assert (doubted.disks[0].areas, doubted.reason) == (AreaSource.EVERYTHING, "it lied")
    assert decided(asked="full", is_doubted=True).disks[0].areas is AreaSource.EVERYTHING


def test_the_same_disk_is_read_by_its_changes() -> None:
    found = decided()
    assert found.level == "incremental"
    assert found.disks[0].areas is AreaSource.CHANGED
    assert found.disks[0].since == "52 aa/3"


def test_a_compare_asks_for_the_changes_audits_all_else_and_is_a_full_one() -> None:
    found = decided(asked="compare")
    assert (found.level, found.disks[0].areas) == ("full", AreaSource.CHANGED)
    assert found.reason == found.disks[0].reason
    assert "compared with the previous point" in found.reason
    assert not level.is_by_changes(found.reason), "it proves the disk, whatever tracking said"
    assert [level.audit_share_of(each, 0.01) for each in ("compare", "incremental")] == [1.0, 0.01]


def test_a_compare_that_has_nothing_to_compare_with_says_so() -> None:
    found = decided(asked="compare", previous=None)
    assert (found.level, found.reason) == ("full", "there is no previous point")
    assert decided(asked="compare", full_needed="it was restored").reason == "it was restored"


def test_a_differential_is_one_only_when_a_disk_is_read_by_its_changes() -> None:
    found = decided(asked="differential")
    assert (found.level, found.disks[0].since) == ("differential", "52 aa/3")
    assert found.reason == "changes since the last full point"
    assert level.is_by_changes(found.disks[0].reason)
    alone = decided(asked="differential", previous=None)
    assert (alone.level, alone.reason) == ("full", "there is no full point")
    assert not level.is_by_changes(alone.disks[0].reason)
    reset = decided(replace(DISK, change_id="52 bb/8"), asked="differential")
    assert reset.level == "full"


@pytest.mark.parametrize(
    ("disk", "reason"),
    [
        (replace(DISK, capacity_bytes=2 << 30), "size"),
        (replace(DISK, backing_uuid="6000C30"), "not in the previous point"),
        (replace(DISK, device_key=2001), "not in the previous point"),
        (replace(DISK, change_id="52 bb/8"), "reset"),
        (replace(DISK, change_id=""), "no change id"),
        (replace(DISK, chain=(replace(BASE, path="web/web-000002.vmdk"),)), "files"),
        (replace(DISK, chain=(replace(BASE, datastore_id=DatastoreId("ds:///2/")),)), "files"),
        (replace(DISK, chain=(BASE, BASE)), "files"),
    ],
)
def test_rule_07_a_disk_that_is_not_provably_the_same_is_read_whole(
    disk: DiskFacts, reason: str
) -> None:
    found = decided(disk)
    assert found.level == "full"
    assert reason in found.reason
    assert found.disks[0].areas is not AreaSource.CHANGED


def test_rule_07_and_27_disks_without_uuids_are_never_the_same_disk() -> None:
    nameless = replace(POINT, disks=(replace(BEFORE, backing_uuid=""),))
    found = decided(replace(DISK, backing_uuid=""), previous=nameless)
    assert found.level == "full"
    assert "no uuid" in found.reason
    assert found.disks[0].areas is not AreaSource.CHANGED


def test_rule_07_and_29_a_restore_a_changed_tree_or_no_point_mean_a_full() -> None:
    assert decided(previous=None).level == "full"
    assert decided(tree="root>snapshot-9 at snapshot-9").level == "full"
    assert decided(asked="full").level == "full"
    restored = decided(full_needed="the VM was restored in place")
    assert (restored.level, restored.reason) == ("full", "the VM was restored in place")


def test_rule_08_a_bad_host_build_forces_a_full_before_and_after_its_patch() -> None:
    bad = replace(HOST, version="6.0.0", build="2494585")
    patched = replace(HOST, version="6.0.0", build="3247720")
    assert decided(host=bad).level == "full"
    older = replace(POINT, host_build=level.host_build_text(bad))
    assert decided(host=patched, previous=older).level == "full"
    newer = replace(POINT, host_build=level.host_build_text(patched))
    assert decided(host=patched, previous=newer).level == "incremental"


def test_a_full_reads_what_is_allocated_only_where_vsphere_knows() -> None:
    assert decided(previous=None).disks[0].areas is AreaSource.ALLOCATED
    nfs = replace(DISK, chain=(replace(BASE, datastore_id=DatastoreId("ds:///nfs/")),))
    assert decided(nfs, previous=None).disks[0].areas is AreaSource.EVERYTHING
    untracked = replace(DISK, change_id="")
    assert decided(untracked, previous=None).disks[0].areas is AreaSource.EVERYTHING


def test_rule_25_a_disk_that_cannot_be_saved_is_not_decided_about() -> None:
    assert decided(replace(DISK, unprotected_reason="independent")).disks == ()


def test_a_snapshot_tree_is_compared_by_its_shape_and_place() -> None:
    node = SnapshotNode(
        moref="snapshot-1", parent_moref="", name="a", description="", created_at="", quiesced=False
    )
    child = replace(node, moref="snapshot-2", parent_moref="snapshot-1")
    texts = {
        level.snapshot_tree_text((), ""),
        level.snapshot_tree_text((node,), "snapshot-1"),
        level.snapshot_tree_text((node, child), "snapshot-1"),
        level.snapshot_tree_text((node, child), "snapshot-2"),
    }
    assert len(texts) == 4
    assert level.snapshot_tree_text((child, node), "snapshot-2") in texts
