"""The program: it starts, tells when it is ready, obeys, and leaves nothing running."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast_lab.faults import LabError
from holdfast_lab.inventory_plan import InventoryPlan, inventory_from, parse_size

PROGRAM = [sys.executable, "-m", "holdfast_lab.main"]
DIFFERENT = 13

INVENTORY = {
    "hosts": ["one.lab"],
    "datastores": [{"name": "ds", "kind": "NFS", "capacity": "1G"}],
    "machines": [
        {
            "name": "only",
            "datastore": "ds",
            "disks": [{"size": "1M", "content": "random", "seed": 4}],
            "user_snapshots": ["mine"],
        }
    ],
}


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The state directory of a lab that runs as a program of its own."""
    folder = tmp_path_factory.mktemp("program")
    inventory = folder / "inventory.json"
    inventory.write_text(json.dumps(INVENTORY), encoding="utf-8")
    process = subprocess.Popen(
        [*PROGRAM, "run", "--state", str(folder / "state"), "--inventory", str(inventory)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline().startswith("lab ready: https://127.0.0.1:")
    yield folder / "state"
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=20)
    assert output == "lab stopped\n"
    assert process.returncode == 0


def lab(state: Path, *arguments: str, status: int = 0) -> subprocess.CompletedProcess[str]:
    result = subprocess.run(
        [*PROGRAM, *arguments, "--state", str(state)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert result.returncode == status, result.stdout + result.stderr
    return result


def test_the_inventory_of_a_file_is_what_runs(state: Path) -> None:
    machines = json.loads(lab(state, "vm", "list", "--json").stdout)
    assert [each["name"] for each in machines] == ["only"]
    assert machines[0]["host"] == "one.lab"
    assert [each["name"] for each in machines[0]["snapshots"]] == ["mine"]
    assert "only" in lab(state, "vm", "list").stdout


def test_a_comparison_with_a_difference_ends_with_13_and_names_disk_and_offset(
    state: Path, tmp_path: Path
) -> None:
    lab(state, "compare", "only")
    raw = tmp_path / "truth.raw"
    lab(state, "truth", "only", "--to", str(raw))
    content = bytearray(raw.read_bytes())
    content[4096] ^= 0xFF
    raw.write_bytes(content)
    result = lab(state, "compare", "only", "--file", str(raw), status=DIFFERENT)
    assert "truth.raw differs from only at offset 4096" in result.stderr


def test_the_guest_writes_and_moments_tell_when(state: Path) -> None:
    lab(state, "mark", "only", "first")
    lab(state, "guest-write", "only", "--count", "2", "--seed", "3")
    lab(state, "compare", "only")
    result = lab(state, "compare", "only", "--at", "first", status=DIFFERENT)
    assert "scsi0:0" in result.stderr
    names = [each["name"] for each in json.loads(lab(state, "moments", "--json").stdout)]
    assert names == ["mine", "first"]


def test_misbehaviour_is_armed_and_taken_off(state: Path) -> None:
    armed = lab(
        state, "misbehave", "arm", "fail_task", "--match", "vm=only", "--set", "fault=NoDiskSpace"
    )
    assert "fail_task" in armed.stdout
    assert len(json.loads(lab(state, "misbehave", "list", "--json").stdout)) == 1
    lab(state, "misbehave", "disarm")
    assert lab(state, "misbehave", "list").stdout == "none\n"
    assert "lost_reply" in lab(state, "misbehave", "kinds").stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ("vm", "power", "only", "reset"),
        ("user-snapshot", "only", "another"),
        ("user-snapshot", "only", "another", "--action", "remove"),
        ("snapshots", "only"),
        ("vm", "show", "only"),
        ("attached",),
        ("calls",),
        ("counters",),
        ("tasks",),
        ("session", "list"),
        ("session", "expire"),
        ("datastore", "list"),
        ("datastore", "add", "second", "--capacity", "2G"),
        ("storage-move", "only", "second"),
        ("datastore", "set", "second", "--capacity", "3G"),
        ("vm", "add", "more", "--datastore", "ds", "--disk", "1M,second,random,2"),
        ("vm", "remove", "more"),
        ("command", "describe"),
    ],
)
def test_a_command_works(state: Path, arguments: tuple[str, ...]) -> None:
    assert lab(state, *arguments).stdout.strip()


def test_a_failing_command_is_one_line_and_ends_with_1(state: Path, tmp_path: Path) -> None:
    result = lab(state, "vm", "show", "nobody", status=1)
    assert result.stderr == "failed: 0 objects of class Machine are named 'nobody'\n"
    assert "no lab runs" in lab(tmp_path, "vm", "list", status=1).stderr
    lab(state, "nonsense", status=2)


def test_plans_are_checked() -> None:
    assert parse_size("64M") == parse_size("64MiB") == 64 << 20
    for bad in ("", "x", "-1", "1.5G"):
        with pytest.raises(LabError):
            parse_size(bad)
    with pytest.raises(LabError, match="InventoryPlan"):
        inventory_from({"planets": []})
    assert [each.name for each in InventoryPlan.demo().machines] == ["web", "db", "proxy"]
