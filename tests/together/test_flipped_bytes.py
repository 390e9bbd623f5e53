"""A byte that changed after its write was acknowledged: every kind of restore finds it, names it, and fails."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from holdfast_lab.control_client import LabClient
from support.flipping_agent import VARIABLE
from support.installation import Installation

INTEGRITY_EXIT = 13
MIB = 1 << 20
TESTS = Path(__file__).parents[1]
MARK = b"a sector that is easily found"  # in a file, to flip a byte of data and no other
MARK_OFFSET = 2 * MIB
PLAN = {
    "machines": [
        {
            "name": "web",
            "datastore": "nfs1",
            "power": "off",
            "disks": [
                {"size": "4M", "content": "random", "content_bytes": MIB, "seed": 1},
                {"size": "2M", "datastore": "nfs2", "content": "random", "seed": 2},
            ],
        },
        {"name": "proxy", "datastore": "vmfs1"},
    ]
}


@pytest.fixture(scope="module")
def holdfast(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    folder = tmp_path_factory.mktemp("flipped")
    plan = folder / "plan.json"
    plan.write_text(json.dumps(PLAN))
    installation = Installation(
        folder,
        lab_arguments=("--inventory", str(plan)),
        program_prefix={"holdfast-agent": [sys.executable, "-m", "support.flipping_agent"]},
        extra_environment={VARIABLE: str(folder / "flip"), "PYTHONPATH": str(TESTS)},
    )
    try:
        installation.start_lab()
        installation.init()
        installation.start_controller()
        installation.add_vcenter()
        installation.enrol_agent()
        installation.start_agent()
        sector = MARK.ljust(512, b".").hex()
        installation.lab("guest-write", "web", "--offset", str(MARK_OFFSET), "--data", sector)
        installation.lab("mark", "web", "point")
        installation.holdfast("backup", "web")
        installation.lab("guest-write", "web", "--count", "3", "--seed", "5")
        installation.lab("mark", "web", "present")
        (folder / "point").write_text(installation.newest_point("web"))
        yield installation
    finally:
        installation.stop()


@pytest.fixture
def point(holdfast: Installation) -> Iterator[str]:
    """The restore point; whatever is done to it, the lab is afterwards as it was before."""
    before = standing(holdfast)
    yield (holdfast.folder / "point").read_text()
    ask(holdfast, "misbehaviour-disarm")
    assert standing(holdfast) == before
    truth = ask(holdfast, "compare", vm="web", original="web", at="present")
    assert truth["equal"], "the VM's own disks are what they were"


def standing(holdfast: Installation) -> tuple[Any, ...]:
    """VMs with their disks, and all files of all datastores."""
    roots = [Path(store["path"]) for store in holdfast.lab_facts()["datastores"].values()]
    files = sorted(str(path) for root in roots for path in root.rglob("*"))
    disks = [
        (vm["name"], [(disk["file"], disk["uuid"]) for disk in vm["disks"]])
        for vm in ask(holdfast, "vm-list")
    ]
    return disks, files, ask(holdfast, "attached")


def ask(holdfast: Installation, command: str, **arguments: Any) -> Any:
    """A command to the lab, without starting a program for it."""
    return LabClient(holdfast.lab_state).call(command, **arguments)


def arm(holdfast: Installation, **match: str) -> None:
    ask(holdfast, "misbehave", kind="flip_byte", match=match)


def assert_named(holdfast: Installation, text: str) -> None:
    """The error names disk and range, and the flipped byte lies in it."""
    (rule,) = ask(holdfast, "misbehaviour-list")
    assert rule["fired"] == 1, "the lab flipped a byte"
    (flipped,) = ask(holdfast, "calls", event="flipped")[-1:]
    found = re.search(r"device_key[=: ]+(\d+).*?length[=: ]+(\d+).*?offset[=: ]+(\d+)", text, re.S)
    assert found, text
    key, length, offset = (int(each) for each in found.groups())
    assert key in (2000, 2001)
    assert offset <= flipped["offset"] < offset + length


@pytest.mark.parametrize(
    ("transport", "direction"), [("direct", "attach"), ("hotadd", "detach"), ("nfc", "upload")]
)
def test_a_new_vm_with_a_flipped_byte_is_found_and_nothing_of_it_stays(
    holdfast: Installation, point: str, transport: str, direction: str
) -> None:
    arm(holdfast, direction=direction)
    done = holdfast.holdfast(
        "restore", point, "vm", "--name", "again", "--transport", transport, expect=INTEGRITY_EXIT
    )
    assert_named(holdfast, done.text)


@pytest.mark.parametrize(
    ("transport", "direction"), [("direct", "attach"), ("hotadd", "detach"), ("nfc", "upload")]
)
def test_in_place_a_flipped_byte_is_found_before_the_vm_is_touched(
    holdfast: Installation, point: str, transport: str, direction: str
) -> None:
    moves = len(ask(holdfast, "calls", method="MoveVirtualDisk_Task"))
    arm(holdfast, direction=direction)
    arguments = ("--in-place", "--yes", "--transport", transport)
    done = holdfast.holdfast("restore", point, "vm", *arguments, expect=INTEGRITY_EXIT)
    assert_named(holdfast, done.text)
    now = len(ask(holdfast, "calls", method="MoveVirtualDisk_Task"))
    assert now == moves, "no disk was moved to the VM"


@pytest.mark.parametrize("transport", ["direct", "hotadd", "nfc"])
def test_in_place_a_byte_flipped_at_the_exchange_is_found_and_the_old_disks_are_back(
    holdfast: Installation, point: str, transport: str
) -> None:
    arm(holdfast, direction="attach", vm="web")
    arguments = ("--in-place", "--yes", "--transport", transport)
    done = holdfast.holdfast("restore", point, "vm", *arguments, expect=INTEGRITY_EXIT)
    assert_named(holdfast, done.text)


def test_a_restored_file_that_is_no_disk_any_more_is_told_with_its_disk(
    holdfast: Installation, point: str
) -> None:
    target = holdfast.restores / "header.vmdk"
    (holdfast.folder / "flip").write_text(f"{target} 0")
    arguments = ("--to", str(target), "--format", "sparse")
    done = holdfast.holdfast("restore", point, "disk", "0", *arguments, expect=INTEGRITY_EXIT)
    assert "cannot be opened again" in done.text
    assert f"device_key=2000, length={4 * MIB}, offset=0" in done.text


@pytest.mark.parametrize("file_format", ["flat", "sparse", "stream-optimized"])
def test_a_restored_file_with_a_flipped_byte_is_found(
    holdfast: Installation, point: str, tmp_path: Path, file_format: str
) -> None:
    target = holdfast.restores / f"{file_format}.vmdk"
    whole = holdfast.restores / f"{file_format}-whole.vmdk"
    holdfast.holdfast("restore", point, "disk", "0", "--to", str(whole), "--format", file_format)
    offset = data_offset(whole, file_format)
    flat = target.with_name(f"{target.stem}-flat.vmdk")
    changed = flat if file_format == "flat" else target
    (holdfast.folder / "flip").write_text(f"{changed} {offset}")
    done = holdfast.holdfast(
        "restore", point, "disk", "0", "--to", str(target), "--format", file_format,
        expect=INTEGRITY_EXIT,
    )  # fmt: skip
    assert "device_key=2000" in done.text
    assert not (holdfast.folder / "flip").exists(), "a byte was flipped"
    if file_format == "stream-optimized":
        assert re.search(r"length=\d+, offset=\d+", done.text), done.text
    else:
        assert f"length=512, offset={MARK_OFFSET}" in done.text


def data_offset(file: Path, file_format: str) -> int:
    """Where in a restored file a byte of data lies."""
    if file_format == "flat":
        return MARK_OFFSET
    if file_format == "sparse":
        return file.read_bytes().index(MARK)
    return file.stat().st_size // 2
