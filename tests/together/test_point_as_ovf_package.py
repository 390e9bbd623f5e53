"""A point is of use without Holdfast: its descriptor and its disks are an OVF package for any other tool."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast_common.identity import PointId
from holdfast_common.job_spec import FileFormat
from holdfast_common.repository.directory_store import DirectoryStore
from holdfast_common.repository.reader import RepositoryReader
from holdfast_controller.runs.requests import RestoreDiskRequest
from holdfast_controller.runs.vm_ovf import disk_file_name
from holdfast_controller.store.jobs import JobRow
from holdfast_lab.inventory_plan import DiskPlan, InventoryPlan, MachinePlan
from holdfast_lab.server import RunningLab, running_lab
from support.one_process import OneProcess, guest_writes, one_process
from support.stock_govc import run_govc, stock_govc

pytestmark = pytest.mark.long
MIB = 1 << 20


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[RunningLab]:
    disks = (
        DiskPlan(size_bytes=8 * MIB, content="random", seed=1),
        DiskPlan(size_bytes=4 * MIB, datastore="nfs2", content="random", seed=2),
    )
    web = MachinePlan(name="web", datastore="nfs1", disks=disks)
    proxy = MachinePlan(name="proxy", datastore="vmfs1", disks=())
    plan = InventoryPlan(machines=(web, proxy))
    with running_lab(tmp_path / "lab", inventory=plan) as running:
        yield running


def test_stock_govc_makes_the_vm_of_the_points_descriptor_and_its_restored_disks(
    lab: RunningLab, tmp_path: Path
) -> None:
    govc = stock_govc()
    with one_process(tmp_path / "holdfast", lab) as holdfast:
        holdfast.back_up("web")
        guest_writes(lab, "web", 3 * MIB, length=65536)
        job = holdfast.back_up("web")
        package = tmp_path / "holdfast" / "restores"
        for device_key in (2000, 2001):
            restore(holdfast, job, device_key, package / disk_file_name(device_key))
        (package / "web.ovf").write_bytes(descriptor(holdfast, job))
    run_govc(
        *(govc, lab, "import.ovf", "-ds", "vmfs1", "-pool", "cluster1/Resources", "-name", "again"),
        str(package / "web.ovf"),
    )
    assert lab.control.call("compare", vm="again", original="web")["equal"]


def descriptor(holdfast: OneProcess, job: JobRow) -> bytes:
    """The OVF that the point holds."""
    record = holdfast.record(job)
    keys = holdfast.world.keeper.keys()
    with (
        DirectoryStore.open(holdfast.folder / "repository") as store,
        RepositoryReader(store, keys.reader_keys(record.lineage_id), segment_keys=keys) as reader,
    ):
        return reader.blob(reader.load_point(PointId(record.point_id)), "ovf")


def restore(holdfast: OneProcess, job: JobRow, device_key: int, path: Path) -> None:
    """One disk to a stream-optimised file."""
    started = holdfast.engine.start_restore_disk(
        RestoreDiskRequest(
            point_id=PointId(holdfast.record(job).point_id),
            disk_number=device_key,
            path=str(path),
            format=FileFormat.STREAM_OPTIMIZED,
        ),
        dry_run=False,
    )
    restored = holdfast.ended(started)
    assert str(restored.state) == "done", f"{restored.state}: {restored.error}"
