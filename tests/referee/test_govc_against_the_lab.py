"""Stock govc, which shares no code with the lab, works with it: look, snapshot, move data, restore."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast_lab.inventory_plan import DiskPlan, InventoryPlan, MachinePlan
from holdfast_lab.server import RunningLab, running_lab

pytestmark = pytest.mark.long
MIB = 1 << 20
GO_MODULE = Path(__file__).parent / "go"
BUILD_SECONDS_MAX = 900


@pytest.fixture(scope="module")
def govc(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The program, built from its own module."""
    go = shutil.which("go")
    if go is None:
        pytest.skip("Go is not installed: https://go.dev/dl, or apt-get install golang")
    folder = tmp_path_factory.mktemp("govc")
    built_here = (GO_MODULE / "govc").is_dir()
    result = subprocess.run(
        [go, "install", "./govc" if built_here else "github.com/vmware/govmomi/govc@latest"],
        cwd=GO_MODULE if built_here else folder,
        env={**os.environ, "GOBIN": str(folder), "GOFLAGS": "-buildvcs=false"},
        capture_output=True,
        text=True,
        check=False,
        timeout=BUILD_SECONDS_MAX,
    )
    if result.returncode != 0:
        pytest.skip(
            f"govc cannot be built (is the module proxy reachable?): {result.stderr[-500:]}"
        )
    return str(folder / "govc")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningLab]:
    """A vCenter with one VM of two disks on two datastores, and a proxy."""
    disks = (
        DiskPlan(size_bytes=8 * MIB, content="random", seed=1),
        DiskPlan(size_bytes=4 * MIB, datastore="vmfs1", content="random", seed=2),
    )
    plan = InventoryPlan(
        machines=(
            MachinePlan(name="web", datastore="nfs1", disks=disks),
            MachinePlan(name="proxy", datastore="vmfs1"),
        )
    )
    with running_lab(tmp_path_factory.mktemp("lab"), inventory=plan) as running:
        yield running
        bugs = running.lab.calls.events(event="lab_bug")
        assert not bugs, bugs


class Govc:
    """Runs commands of one program against one lab."""

    def __init__(self, program: str, lab: RunningLab) -> None:
        self.program = program
        self.environment = {
            **os.environ,
            "GOVC_URL": lab.url,
            "GOVC_USERNAME": lab.user,
            "GOVC_PASSWORD": lab.password,
            "GOVC_INSECURE": "1",
            "GOVC_PERSIST_SESSION": "false",
        }

    def __call__(self, *arguments: str, fails: bool = False) -> str:
        result = subprocess.run(
            [self.program, *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert (result.returncode != 0) is fails, result.stdout + result.stderr
        return result.stdout + (result.stderr if fails else "")


@pytest.fixture
def run(govc: str, lab: RunningLab) -> Govc:
    return Govc(govc, lab)


def test_it_logs_in_and_looks_around(run: Govc, lab: RunningLab) -> None:
    assert "API type:     VirtualCenter" in run("about")
    assert run("ls").split() == ["/dc1/vm", "/dc1/host", "/dc1/datastore", "/dc1/network"]
    assert run("ls", "/dc1/vm").split() == ["/dc1/vm/web", "/dc1/vm/proxy"]
    shown = run("vm.info", "web")
    assert "Power state:  poweredOn" in shown
    assert str(lab.control.call("vm-show", vm="web")["bios_uuid"]) in shown
    assert "pvscsi-1000" in run("device.ls", "-vm", "web")
    assert "[nfs1] web/web.vmdk" in run("device.info", "-vm", "web", "disk-1000-0")


def test_it_makes_and_removes_a_snapshot(run: Govc, lab: RunningLab) -> None:
    run("snapshot.create", "-vm", "web", "by govc")
    assert "by govc" in run("snapshot.tree", "-vm", "web")
    frozen = lab.control.call("vm-show", vm="web")["disks"][0]
    assert frozen["file"] == "[nfs1] web/web-000001.vmdk"
    run("snapshot.remove", "-vm", "web", "by govc")
    shown = lab.control.call("vm-show", vm="web")
    assert shown["snapshots"] == []
    assert shown["disks"][0]["file"] == "[nfs1] web/web.vmdk"
    assert lab.control.call("compare", vm="web")["equal"]


def test_it_downloads_the_frozen_disk_and_not_the_running_tip(
    run: Govc, lab: RunningLab, tmp_path: Path
) -> None:
    assert "web.vmx" in run("datastore.ls", "-ds", "nfs1", "web").split()
    target = str(tmp_path / "web-flat.vmdk")
    run("datastore.download", "-ds", "nfs1", "web/web-flat.vmdk", target, fails=True)
    run("snapshot.create", "-vm", "web", "frozen")
    lab.control.call("guest-write", vm="web", seed=7, count=4)
    run("datastore.download", "-ds", "nfs1", "web/web-flat.vmdk", target)
    assert lab.control.call("compare", vm="web", at="frozen", disk=0, file=target)["equal"]
    run("snapshot.remove", "-vm", "web", "frozen")


def test_it_attaches_and_detaches_a_disk_of_a_running_proxy(run: Govc, lab: RunningLab) -> None:
    run("vm.create", "-ds", "nfs2", "-on=false", "-disk", "4MB", "-pool", "cluster1/Resources", "t")
    lab.control.call("guest-write", vm="t", seed=3)
    run("vm.disk.attach", "-vm", "proxy", "-ds", "nfs2", "-disk", "t/t.vmdk", "-link=false")
    attached = lab.control.call("attached")
    assert [(each["vm"], each["slot"]) for each in attached] == [("proxy", "scsi0:0")]
    disk = Path(attached[0]["folder"]) / "disk"
    assert lab.control.call("compare", vm="t", disk=0, file=str(disk))["equal"]
    run("device.remove", "-vm", "proxy", "-keep", "disk-1000-0")
    assert lab.control.call("attached") == []
    run("vm.unregister", "t")
    run("vm.register", "-ds", "nfs2", "-pool", "cluster1/Resources", "t/t.vmx")
    assert lab.control.call("compare", vm="t")["equal"]
    run("vm.destroy", "t")


def test_it_exports_a_vm_and_imports_it_as_another_one_with_the_same_content(
    run: Govc, lab: RunningLab, tmp_path: Path
) -> None:
    run("export.ovf", "-vm", "web", str(tmp_path), fails=True)
    run("vm.power", "-off", "web")
    run("export.ovf", "-vm", "web", str(tmp_path))
    run(
        *("import.ovf", "-ds", "nfs2", "-pool", "cluster1/Resources", "-name", "again"),
        str(tmp_path / "web" / "web.ovf"),
    )
    assert lab.control.call("compare", vm="again", original="web")["equal"]
    counted = lab.control.call("counters")["datastores"]
    assert counted["nfs2"]["bytes_written"] > 0
    assert all(each["open_now"] == 0 for each in counted.values())
    run("vm.power", "-on", "web")


def test_it_moves_a_running_vm(run: Govc, lab: RunningLab) -> None:
    run("vm.migrate", "-ds", "nfs2", "web")
    run("vm.migrate", "-host", "esx2.lab", "web")
    shown = lab.control.call("vm-show", vm="web")
    assert shown["host"] == "esx2.lab"
    assert {each["datastore"] for each in shown["disks"]} == {"nfs2"}
    assert lab.control.call("compare", vm="web")["equal"]


def test_it_works_with_a_single_host(
    govc: str, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    disk = DiskPlan(size_bytes=4 * MIB, content="random", seed=5)
    plan = InventoryPlan(machines=(MachinePlan(name="solo", datastore="vmfs1", disks=(disk,)),))
    with running_lab(tmp_path_factory.mktemp("host"), mode="host", inventory=plan) as host:
        run = Govc(govc, host)
        assert "API type:     HostAgent" in run("about")
        assert run("ls", "vm").split() == ["/ha-datacenter/vm/solo"]
        run("snapshot.create", "-vm", "solo", "s")
        run("snapshot.remove", "-vm", "solo", "s")
        run("vm.power", "-off", "solo")
        run("export.ovf", "-vm", "solo", str(tmp_path))
        run("import.ovf", "-ds", "nfs1", "-name", "copy", str(tmp_path / "solo" / "solo.ovf"))
        assert host.control.call("compare", vm="copy", original="solo")["equal"]
