"""Restores to other places than a VM came from, and those that are refused: clear errors, nothing changed."""

from __future__ import annotations

import json
import shutil
import signal
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pyVim import connect
from pyVmomi import vim

from holdfast_lab.control_client import LabClient
from support.installation import Installation
from support.lab_vsphere import wait

MIB = 1 << 20
DISKS = [
    {"size": "4M", "content": "random", "content_bytes": MIB, "seed": 1},
    {"size": "2M", "datastore": "nfs2", "content": "random", "content_bytes": MIB, "seed": 2},
]
ONE_DISK = [{"size": "1M", "content": "random", "seed": 3}]
PLAN = {
    "datastores": [
        {"name": "nfs1", "kind": "NFS"},
        {"name": "nfs2", "kind": "NFS"},
        {"name": "vmfs1", "kind": "VMFS"},
        {"name": "small", "kind": "NFS", "capacity": "512M"},
    ],
    "machines": [
        {"name": "web", "datastore": "nfs1", "power": "off", "firmware": "efi", "disks": DISKS,
         "change_tracking": True},
        {"name": "gone", "datastore": "nfs1", "power": "off", "disks": ONE_DISK},
        {"name": "running", "datastore": "nfs1", "disks": ONE_DISK},
        {"name": "snapped", "datastore": "nfs1", "power": "off", "disks": ONE_DISK,
         "user_snapshots": ["before upgrade"]},
        {"name": "neighbour", "datastore": "vmfs1", "folder": "elsewhere", "host": "esx2.lab"},
        {"name": "proxy", "datastore": "vmfs1"},
    ],
}  # fmt: skip
OTHER_PLAN = {
    "datacenter": "dc2",
    "hosts": ["esx9.lab"],
    "datastores": [{"name": "other1", "kind": "VMFS"}, {"name": "other2", "kind": "VMFS"}],
}
BACKED_UP = ("web", "gone", "running", "snapped")


@pytest.fixture(scope="module")
def holdfast(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    folder = tmp_path_factory.mktemp("elsewhere")
    (folder / "plan.json").write_text(json.dumps(PLAN))
    installation = Installation(folder, lab_arguments=("--inventory", str(folder / "plan.json")))
    try:
        installation.start_lab()
        installation.init()
        installation.start_controller()
        installation.add_vcenter()
        installation.enrol_agent()
        installation.start_agent()
        add_sound_card(installation, "web")
        for name in BACKED_UP:
            ask(installation, "mark", vm=name, name="point")
        installation.holdfast("backup", *BACKED_UP)
        points = installation.holdfast("point", "list", "--json").json()["points"]
        (folder / "points.json").write_text(
            json.dumps({row["vm"]: row["point_id"] for row in points})
        )
        yield installation
    finally:
        installation.stop()


@pytest.fixture(scope="module")
def other_lab(holdfast: Installation) -> LabClient:
    """A second vCenter, which Holdfast knows as ``other``; no proxy is a VM in it."""
    state = holdfast.folder / "other-lab"
    plan, ready = holdfast.folder / "other.json", holdfast.folder / "other.ready"
    plan.write_text(json.dumps(OTHER_PLAN))
    holdfast.start(
        "other-lab", "holdfast-lab", "run", "--state", str(state), "--inventory", str(plan),
        "--ready-file", str(ready),
    )  # fmt: skip
    holdfast._wait_for("other-lab", ready)
    facts = json.loads((state / "lab.json").read_text())
    holdfast.add_vcenter(
        "other",
        **{name: facts[name] for name in ("url", "user", "password", "certificate_sha256")},
    )
    return LabClient(state)


def ask(holdfast: Installation, command: str, **arguments: Any) -> Any:
    """A command to the lab, without starting a program for it."""
    return LabClient(holdfast.lab_state).call(command, **arguments)


def point_of(holdfast: Installation, vm: str) -> str:
    return str(json.loads((holdfast.folder / "points.json").read_text())[vm])


def add_sound_card(holdfast: Installation, name: str) -> None:
    """A device that no restore makes again."""
    facts = holdfast.lab_facts()
    context = ssl.create_default_context(cafile=str(holdfast.lab_state / "certificate.pem"))
    context.check_hostname = False
    host, _, port = facts["url"].partition("//")[2].partition("/")[0].rpartition(":")
    log_in: Any = connect.SmartConnect  # pyVim has no types
    log_out: Any = connect.Disconnect
    instance = log_in(
        host=host, port=int(port), user=facts["user"], pwd=facts["password"], sslContext=context
    )
    moref = ask(holdfast, "vm-show", vm=name)["id"]
    machine = vim.VirtualMachine(moref, instance._stub)
    card = vim.vm.device.VirtualSoundCard(
        key=-5, backing=vim.vm.device.VirtualSoundCard.DeviceBackingInfo(deviceName="")
    )
    change = vim.vm.device.VirtualDeviceSpec(operation="add", device=card)
    wait(machine.ReconfigVM_Task(vim.vm.ConfigSpec(deviceChange=[change])))
    log_out(instance)


def standing(holdfast: Installation) -> tuple[Any, ...]:
    """VMs with their disks and snapshots, and all files of all datastores."""
    roots = [Path(store["path"]) for store in holdfast.lab_facts()["datastores"].values()]
    files = sorted(str(path) for root in roots for path in root.rglob("*"))
    return ask(holdfast, "vm-list"), files, ask(holdfast, "attached")


def assert_new_identity(new: dict[str, Any], old: dict[str, Any]) -> None:
    """New uuids and MAC addresses, powered off, networks disconnected."""
    assert new["power"] == "poweredOff"
    for name in ("id", "instance_uuid", "bios_uuid"):
        assert new[name] != old[name]
    cards = new["network_cards"]
    assert len(cards) == len(old["network_cards"]) > 0
    assert not {card["mac"] for card in cards} & {card["mac"] for card in old["network_cards"]}
    assert not any(card["start_connected"] for card in cards)


def nvram(machine: dict[str, Any]) -> bytes:
    (found,) = Path(machine["directory"]).glob("*.nvram")
    return found.read_bytes()


def remove(lab: LabClient, name: str) -> None:
    lab.call("vm-remove", vm=name)


def assert_equal_to_point(holdfast: Installation, new: dict[str, Any], original: str) -> None:
    """Each disk of a VM, of whichever lab, against the ground truth of the original's lab."""
    for number, disk in enumerate(new["disks"]):
        flat = disk["path"].removesuffix(".vmdk") + "-flat.vmdk"
        found = ask(holdfast, "compare", vm=original, at="point", disk=number, file=flat)
        assert found["equal"], found


def test_another_host_folder_and_datastore_and_each_disk_its_own(holdfast: Installation) -> None:
    done = holdfast.holdfast(
        "restore", point_of(holdfast, "web"), "vm", "--name", "moved", "--host", "esx2.lab",
        "--folder", "dc1/vm/elsewhere", "--datastore", "nfs2",
        "--disk", "2000=vmfs1", "--disk", "2001=nfs1",
    )  # fmt: skip
    new, old = ask(holdfast, "vm-show", vm="moved"), ask(holdfast, "vm-show", vm="web")
    assert new["host"] == "esx2.lab"
    assert new["path"].endswith("elsewhere/moved")
    assert new["vmx"].startswith("[nfs2] ")
    assert [disk["datastore"] for disk in new["disks"]] == ["vmfs1", "nfs1"]
    assert_new_identity(new, old)
    assert new["firmware"] == "efi"
    assert nvram(new) == nvram(old)
    assert_equal_to_point(holdfast, new, "web")
    assert "left_out" in done.text
    assert "VirtualSoundCard" in done.text
    remove(LabClient(holdfast.lab_state), "moved")


@pytest.mark.parametrize("folder", ["/dc1/elsewhere", "dc1/vm/elsewhere/", "dc1", "dc1/vm"])
def test_a_folder_is_named_as_the_inventory_shows_it_or_as_vsphere_does(
    holdfast: Installation, folder: str
) -> None:
    arguments = ("vm", "--name", "new", "--folder", folder, "--dry-run")
    done = holdfast.holdfast("restore", point_of(holdfast, "web"), *arguments)
    found = "/dc1/elsewhere" if "elsewhere" in folder else "/dc1"
    assert f"folder {found}, " in done.text


def test_into_another_vcenter(holdfast: Installation, other_lab: LabClient) -> None:
    holdfast.holdfast(
        "restore", point_of(holdfast, "web"), "vm", "--name", "web", "--vcenter", "other",
        "--datastore", "other1", "--disk", "2001=other2",
    )  # fmt: skip
    new = other_lab.call("vm-show", vm="web")
    assert_new_identity(new, ask(holdfast, "vm-show", vm="web"))
    assert [disk["datastore"] for disk in new["disks"]] == ["other1", "other2"]
    assert nvram(new) == nvram(ask(holdfast, "vm-show", vm="web"))
    assert_equal_to_point(holdfast, new, "web")
    remove(other_lab, "web")


def test_in_another_vcenter_its_datastores_must_be_named(
    holdfast: Installation, other_lab: LabClient
) -> None:
    arguments = ("vm", "--name", "web", "--vcenter", "other")
    done = holdfast.holdfast("restore", point_of(holdfast, "web"), *arguments, expect=15)
    assert "add --datastore NAME, or --disk 2000=NAME" in done.text
    assert not other_lab.call("vm-list")


def test_a_vm_that_was_deleted_is_restored_where_it_was_and_elsewhere(
    holdfast: Installation, other_lab: LabClient
) -> None:
    point = point_of(holdfast, "gone")
    old = ask(holdfast, "vm-show", vm="gone")
    remove(LabClient(holdfast.lab_state), "gone")
    done = holdfast.holdfast("restore", point, "vm", "--in-place", "--yes", expect=1)
    assert "source_gone" in done.text
    assert "--name" in done.text
    arguments = ("--vcenter", "other", "--datastore", "other2")
    holdfast.holdfast("restore", point, "vm", "--name", "gone", *arguments)
    new = other_lab.call("vm-show", vm="gone")
    assert_new_identity(new, old)
    assert_equal_to_point(holdfast, new, "gone")
    remove(other_lab, "gone")
    holdfast.holdfast("restore", point, "vm", "--name", "gone")
    back = ask(holdfast, "vm-show", vm="gone")
    assert_new_identity(back, old)
    assert [disk["datastore"] for disk in back["disks"]] == ["nfs1"]
    assert_equal_to_point(holdfast, back, "gone")


@pytest.mark.parametrize(
    ("vm", "arguments", "status", "text"),
    [
        ("web", ("--name", "running"), 15, "there is a VM or a folder of this name"),
        ("web", ("--name", "new", "--datastore", "nosuch"), 1, "there is no such datastore"),
        ("web", ("--name", "new", "--disk", "2000=nosuch"), 1, "there is no such datastore"),
        ("web", ("--name", "new", "--host", "nosuch"), 1, "there is no such host"),
        (
            "web",
            ("--name", "new", "--folder", "dc1/vm/nosuch"),
            1,
            "there is no such folder of VMs",
        ),
        ("web", ("--name", "elsewhere"), 15, "there is a VM or a folder of this name"),
        ("web", ("--name", "new", "--vcenter", "nosuch"), 1, "not_found"),
        ("web", ("--name", "new", "--disk", "2999=nfs1"), 2, "the point has no such disk"),
        ("web", ("--name", "new", "--datastore", "small"), 15, "too little room"),
        ("web", ("--name", "new", "--in-place", "--yes"), 2, "either --name or --in-place"),
        ("web", (), 2, "either --name or --in-place"),
        ("running", ("--in-place", "--yes"), 15, "the VM is running"),
        ("snapped", ("--in-place", "--yes"), 15, "the VM has snapshots"),
    ],
)
def test_what_cannot_be_done_is_refused_and_nothing_is_changed(
    holdfast: Installation, vm: str, arguments: tuple[str, ...], status: int, text: str
) -> None:
    before = standing(holdfast)
    done = holdfast.holdfast("restore", point_of(holdfast, vm), "vm", *arguments, expect=status)
    assert text in done.stderr
    assert standing(holdfast) == before


def test_a_name_that_appeared_since_the_inventory_was_read_is_refused_too(
    holdfast: Installation,
) -> None:
    plan = {"name": "sudden", "datastore": "vmfs1", "power": "off"}
    ask(holdfast, "vm-add", machine=plan)
    before = standing(holdfast)
    for transport in ("direct", "nfc"):
        arguments = ("vm", "--name", "sudden", "--transport", transport)
        done = holdfast.run("holdfast", "restore", point_of(holdfast, "web"), *arguments)
        assert done.status == 15, done.text
        assert "there is a VM or a folder of this name" in done.stderr
        assert standing(holdfast) == before
    remove(LabClient(holdfast.lab_state), "sudden")


def test_the_backup_after_a_restore_in_place_is_a_full_and_the_next_an_incremental(
    holdfast: Installation,
) -> None:
    point = point_of(holdfast, "web")
    ask(holdfast, "guest-write", vm="web", count=3, seed=9)
    holdfast.holdfast("restore", point, "vm", "--in-place", "--yes")
    assert_equal_to_point(holdfast, ask(holdfast, "vm-show", vm="web"), "web")
    holdfast.holdfast("backup", "web")
    ask(holdfast, "guest-write", vm="web", count=1, seed=10)
    holdfast.holdfast("backup", "web")
    newest, after, *_ = holdfast.points("web")
    assert after["level"] == "full"
    assert "restored in place" in after["level_reason"]
    assert newest["level"] == "incremental"
    ask(holdfast, "mark", vm="web", name="later")
    holdfast.holdfast("restore", str(newest["point_id"]), "vm", "--name", "later")
    assert ask(holdfast, "compare", vm="later", original="web", at="later")["equal"]
    remove(LabClient(holdfast.lab_state), "later")


@pytest.mark.skipif(not shutil.which("qemu-img"), reason="needs qemu-img: install qemu-utils")
def test_a_disk_is_restored_to_a_file_of_each_format_without_any_vsphere(
    holdfast: Installation, tmp_path: Path
) -> None:
    truth = tmp_path / "truth.raw"
    ask(holdfast, "truth", vm="web", at="point", disk=1, to=str(truth))
    point = point_of(holdfast, "web")
    labs = [holdfast.processes[key] for key in ("lab", "other-lab") if key in holdfast.processes]
    for lab in labs:
        lab.send_signal(signal.SIGSTOP)  # answers nobody any more
    try:
        for name in ("sparse", "flat", "stream-optimized"):
            target = holdfast.restores / f"{name}.vmdk"
            arguments = ("--to", str(target), "--format", name)
            done = holdfast.holdfast("restore", point, "disk", "2001", *arguments)
            assert "read back and equal" in done.text
            compared = subprocess.run(
                ["qemu-img", "compare", "-f", "vmdk", "-F", "raw", str(target), str(truth)],
                capture_output=True, text=True, timeout=60, check=False,
            )  # fmt: skip
            assert compared.returncode == 0, compared.stdout + compared.stderr
    finally:
        for lab in labs:
            lab.send_signal(signal.SIGCONT)
