"""VMs with awkward names: each is backed up and restored whole, or refused before anything is made."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from holdfast_common.errors import Refused, UsageError
from holdfast_common.identity import PointId
from holdfast_controller.runs.requests import RestoreVmRequest
from holdfast_controller.store.jobs import JobRow
from holdfast_lab.inventory_plan import DiskPlan, InventoryPlan, MachinePlan
from holdfast_lab.machine_life import destroy_machine
from holdfast_lab.server import RunningLab, running_lab
from support.one_process import OneProcess, digest, disk_truth, guest_writes, one_process
from support.restored_disks import disk_start

MIB = 1 << 20
TRANSPORTS = ("direct", "hotadd", "nfc")
GOOD = {
    "slash and percent": "a/b%zz",
    "looks escaped": "a%2fb%25%5c",
    "upwards": "../x",
    "backslash": "x\\y",
    "one percent": "fin/ance%1",
    "dots": "..",
    "80 characters": "n" * 80,
    "80 wide characters": "ü漢" * 40,
    "unicode": "Büro - Zürich 東京 ☃",
    "quotes": 'it\'s "quoted" `so` $HOME; & <b>',
    "brackets": "[nfs1] web/web.vmdk",
    "wildcards": "a*?[b]",
}
BAD = {
    "nothing": "   ",
    "81 characters": "n" * 81,
    "80 with a slash": "n" * 79 + "/",
    "leading blank": " web",
    "trailing blank": "web ",
    "newline": "we\nb",
    "control character": "we\x07b",
}


WAYS = [
    pytest.param(name, TRANSPORTS[number % 3], id=f"{label}, {TRANSPORTS[number % 3]}")
    for number, (label, name) in enumerate(GOOD.items())
]


def plan_of(*names: str, datacenter: str = "dc1") -> InventoryPlan:
    """A VM of each name, shut down, and a proxy."""
    disk = DiskPlan(size_bytes=MIB, content="random", content_bytes=MIB // 4, seed=1)
    named = [
        MachinePlan(name=name, datastore="nfs1", power="off", change_tracking=True, disks=(disk,))
        for name in names
    ]
    proxy = MachinePlan(name="proxy", datastore="vmfs1", disks=())
    return InventoryPlan(datacenter=datacenter, machines=(*named, proxy))


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningLab]:
    with running_lab(tmp_path_factory.mktemp("lab"), inventory=plan_of("web")) as running:
        yield running


@pytest.fixture(scope="module")
def holdfast(tmp_path_factory: pytest.TempPathFactory, lab: RunningLab) -> Iterator[OneProcess]:
    with one_process(tmp_path_factory.mktemp("names"), lab) as ready:
        yield ready


@pytest.fixture(scope="module")
def point(holdfast: OneProcess) -> str:
    job = holdfast.back_up("web")
    holdfast.record(job)
    return str(job.point_id)


def restore(holdfast: OneProcess, point_id: str, **wish: object) -> JobRow:
    request = RestoreVmRequest(point_id=PointId(point_id), **wish)  # type: ignore[arg-type]  # a test's own words
    holdfast.engine.start_restore_vm(request, dry_run=True)
    return holdfast.ended(holdfast.engine.start_restore_vm(request, dry_run=False))


def standing(lab: RunningLab) -> tuple[list[str], list[str]]:
    """Names of VMs, and every file of every datastore."""
    names = sorted(each["name"] for each in lab.control.call("vm-list"))
    with lab.lab.lock:
        roots = [store.root for store in lab.lab.datastores()]
    return names, sorted(str(path) for root in roots for path in root.rglob("*"))


def held(lab: RunningLab, vm: str) -> str:
    """The digest of a VM's first disk as the lab's own reader finds it."""
    device = lab.lab.machine(vm).disks()[0]
    return digest(disk_start(lab, vm, device.key, device.disk.capacity_bytes))


@pytest.mark.parametrize(("name", "transport"), WAYS)
def test_a_new_vm_of_this_name_is_whole_and_nothing_else_is_made(
    holdfast: OneProcess, lab: RunningLab, point: str, name: str, transport: str
) -> None:
    before = standing(lab)
    restored = restore(holdfast, point, name=name, transport=transport)
    assert str(restored.state) == "done", restored.error
    assert standing(lab)[0] == sorted([*before[0], name])
    assert held(lab, name) == disk_truth(lab, "web")
    folder = lab.lab.machine(name).directory
    assert folder.parent == lab.lab.datastore("nfs1").root
    assert not holdfast.world.ledger.open_entries()
    with pytest.raises(Refused, match="of this name"):
        restore(holdfast, point, name=name, transport=transport)
    destroy_machine(lab.lab.machine(name))
    assert standing(lab) == before


@pytest.mark.parametrize("name", BAD.values(), ids=BAD)
def test_this_name_is_refused_in_the_plan_and_nothing_is_made(
    holdfast: OneProcess, lab: RunningLab, point: str, name: str
) -> None:
    before = standing(lab)
    with pytest.raises(UsageError, match="a VM's name"):
        restore(holdfast, point, name=name)
    assert standing(lab) == before
    assert not holdfast.world.ledger.open_entries()


@pytest.fixture(scope="module")
def named_lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningLab]:
    """A VM of each name, in a folder and with files called as vSphere calls them."""
    plan = plan_of(*GOOD.values(), datacenter="d/c\\100%1")
    with running_lab(tmp_path_factory.mktemp("named-lab"), inventory=plan) as running:
        yield running


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory, named_lab: RunningLab) -> Iterator[OneProcess]:
    with one_process(tmp_path_factory.mktemp("named"), named_lab) as ready:
        yield ready


@pytest.mark.parametrize(("name", "transport"), WAYS)
def test_a_vm_of_this_name_is_backed_up_and_restored_in_place(
    named: OneProcess, named_lab: RunningLab, name: str, transport: str
) -> None:
    before = standing(named_lab)[0]
    truth = disk_truth(named_lab, name)
    job = named.back_up(name, transport=transport)
    record = named.record(job)
    assert record.vm_name == name
    assert {"vmx", "nvram"} <= set(record.blob_kinds), "files are found by the datacenter's path"
    guest_writes(named_lab, name, 3 * 65536)
    restored = restore(named, str(job.point_id), in_place=True, transport=transport)
    assert str(restored.state) == "done", restored.error
    assert held(named_lab, name) == truth
    assert standing(named_lab)[0] == before
    assert not named.world.ledger.open_entries()
