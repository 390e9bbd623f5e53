"""A guest that boots from its own disk is saved, writes, is saved again, restored, and boots."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast_lab.control_client import LabClient
from support.installation import Installation, whole_installation
from support.qemu_guest import MIB, boot, file_system_complaints, make_guest_image
from support.qemu_guest_parts import guest_parts, tool

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]
CAPACITY_BYTES = 128 * MIB
FIRST = b"written before the full backup\n" * 400
SECOND = "written between the full backup and the incremental\n" * 400


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The guest's disk as it is before the first backup."""
    parts = guest_parts()
    tool("qemu-img", "qemu-utils")
    return make_guest_image(
        parts,
        tmp_path_factory.mktemp("guest"),
        capacity_bytes=CAPACITY_BYTES,
        files={"first": FIRST},
    )


@pytest.fixture(scope="module")
def holdfast(image: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """An installation whose lab has the guest as the VM ``appliance``, backed up twice."""
    folder = tmp_path_factory.mktemp("boots")
    inventory = folder / "inventory.json"
    inventory.write_text(json.dumps(INVENTORY), encoding="utf-8")
    arguments = ("--inventory", str(inventory))
    with whole_installation(folder / "holdfast", lab_arguments=arguments) as installation:
        guest = LabClient(installation.lab_state)
        guest.call("guest-fill", vm="appliance", image=str(image), layout="mbr")
        installation.holdfast("backup", "appliance", "--level", "full")
        guest.call("guest-ext4", vm="appliance", write={"srv/second": SECOND})
        guest.call("mark", vm="appliance", name="day1")
        installation.holdfast("backup", "appliance")
        guest.call("guest-ext4", vm="appliance", write={"srv/third": "after the last backup\n"})
        yield installation


INVENTORY = {
    "machines": [
        {
            "name": "appliance",
            "datastore": "nfs1",
            "disks": [{"size": f"{CAPACITY_BYTES // MIB}M"}],
        },
        {"name": "proxy", "datastore": "vmfs1", "disks": []},
    ]
}


def test_the_second_point_is_an_incremental_that_read_little(holdfast: Installation) -> None:
    point = holdfast.points("appliance")[0]
    assert point["level"] == "incremental"
    assert int(point["read_bytes"]) < CAPACITY_BYTES // 4


@pytest.mark.parametrize("kind", ["sparse", "flat", "stream-optimized"])
def test_a_restored_incremental_boots_to_its_marker(
    holdfast: Installation, tmp_path: Path, kind: str
) -> None:
    target = holdfast.restores / f"appliance-{kind}.vmdk"
    point = holdfast.newest_point("appliance")
    holdfast.holdfast("restore", point, "disk", "0", "--to", str(target), "--format", kind)
    _judge(holdfast, target, tmp_path)


def test_a_vm_restored_to_a_new_name_boots_to_its_marker(
    holdfast: Installation, tmp_path: Path
) -> None:
    point = holdfast.newest_point("appliance")
    holdfast.holdfast("restore", point, "vm", "--name", "appliance-restored")
    restored = holdfast.lab("vm", "show", "appliance-restored")
    store, _, path = restored["disks"][0]["file"].removeprefix("[").partition("] ")
    datastores = holdfast.lab_facts()["datastores"]
    _judge(holdfast, Path(datastores[store]["path"]) / path, tmp_path)


def _judge(holdfast: Installation, disk: Path, folder: Path) -> None:
    """Equal to the ground truth, clean by e2fsck, and up with what only the incremental has."""
    raw = folder / "restored.raw"
    _convert(disk, raw)
    verdict = LabClient(holdfast.lab_state).call(
        "compare", vm="appliance", at="day1", disk=0, file=str(raw)
    )
    assert verdict["equal"], verdict
    assert file_system_complaints(raw, folder) == ""
    booted = boot(disk, disk_format="vmdk")
    assert booted.is_up, booted.serial[-3000:]
    assert booted.checksums == {
        "first": hashlib.sha256(FIRST).hexdigest(),
        "second": hashlib.sha256(SECOND.encode()).hexdigest(),
    }


def _convert(disk: Path, raw: Path) -> None:
    """The disk as qemu reads it, so that other tools can look at it."""
    program = shutil.which("qemu-img")
    assert program is not None
    command = [program, "convert", "-f", "vmdk", "-O", "raw", str(disk), str(raw)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
