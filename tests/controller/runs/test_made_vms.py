"""A point from a newer vSphere than ours: what nobody knows is left out and named, and the VM is restored."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast_common.identity import PointId
from holdfast_common.job_spec import TransportKind
from holdfast_controller.runs.requests import RestoreVmRequest
from holdfast_controller.vsphere import configuration
from holdfast_controller.vsphere.foreign import Foreign
from holdfast_lab.inventory_plan import DiskPlan, InventoryPlan, MachinePlan
from holdfast_lab.server import RunningLab, running_lab
from support.one_process import OneProcess, disk_truth, guest_writes

SIZE = 1 << 20
HOLOGRAM = {"_type": "VirtualHologram", "key": 99, "deviceInfo": {"label": "Hologram 1"}}


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[RunningLab]:
    disks = tuple(DiskPlan(size_bytes=SIZE, content="random", seed=n) for n in (1, 2))
    web = MachinePlan(name="web", datastore="nfs1", power="off", disks=disks)
    proxy = MachinePlan(name="proxy", datastore="vmfs1", disks=())
    with running_lab(tmp_path / "lab", inventory=InventoryPlan(machines=(web, proxy))) as running:
        yield running


@pytest.fixture
def newer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The configuration as a vSphere shows it that knows more than we do."""
    plain = configuration.configuration_json

    def told(config: Foreign) -> str:
        found = json.loads(plain(config))
        found["perfume"] = {"_type": "NobodyKnows", "strength": 3}
        for device in found["devices"]:
            device["perfume"] = 3
            if device["_type"] == "VirtualDisk":
                device["backing"] = {"_type": "VirtualDiskCloudBackingInfo", "cloud": "9"}
            if "SCSI" in device["_type"] or "Lsi" in device["_type"]:
                device["_type"] = "VirtualHolographicController"
        found["devices"].append(HOLOGRAM)
        return json.dumps(found)

    monkeypatch.setattr(configuration, "configuration_json", told)


@pytest.mark.usefixtures("newer")
@pytest.mark.parametrize("transport", ["direct", "hotadd", "nfc"])
@pytest.mark.parametrize("where", ["new", "in place"])
def test_unknown_devices_and_properties_are_left_out_with_a_note(
    lab: RunningLab, holdfast: OneProcess, transport: str, where: str
) -> None:
    transport = TransportKind(transport).value
    point = PointId(str(holdfast.back_up("web", transport=transport).point_id))
    truth = [disk_truth(lab, "web", number) for number in (0, 1)]
    in_place = where == "in place"
    if in_place:
        guest_writes(lab, "web", 4096)
    name = "" if in_place else "again"
    started = holdfast.engine.start_restore_vm(
        RestoreVmRequest(point_id=point, name=name, in_place=in_place, transport=transport),
        dry_run=False,
    )
    job = holdfast.ended(started)
    assert str(job.state) == "done", job.error
    assert [disk_truth(lab, name or "web", number) for number in (0, 1)] == truth
    if not in_place:
        told = " ".join(each.message for each in job.warnings)
        assert "Hologram 1 is left out" in told
        assert "LSI Logic SAS" in told
