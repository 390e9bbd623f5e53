"""The controller's machine is lost, in the middle of a backup; the repository and the recovery sheet survive."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.installation import Installation
from support.waiting import wait_until

UNIT = 64 * 1024
CAPACITY = 8 << 20
VOLATILE = ("last_seen_at", "state", "session_epoch", "certificate_ends_at", "revision_at")
LISTINGS = (("policy", "list"), ("agent", "list"), ("point", "list"))

pytestmark = pytest.mark.long


@pytest.fixture
def installation(tmp_path: Path) -> Iterator[Installation]:
    """The agent has a home of its own, as on another machine; the controller copies itself all the time."""
    made = Installation(tmp_path)
    try:
        made.start_lab()
        sheet = made.init().json()["recovery_key"]
        (tmp_path / "sheet").write_text(sheet)
        made.configure(self_backup_seconds=1.0)
        made.start_controller()
        made.add_vcenter()
        made.enrol_agent()
        move_agent(made)
        for name in ("one", "two"):
            disk = {"size_bytes": CAPACITY, "content": "random", "seed": 5}
            machine = {"name": name, "datastore": "nfs1", "disks": [disk]}
            made.control("vm-add", machine=machine)
        made.holdfast("vcenter", "refresh", "lab")
        yield made
    finally:
        made.stop()


def move_agent(made: Installation) -> None:
    """What enrolled in the controller's home goes on in another one."""
    home = made.folder / "agent-home"
    for part in ("etc/agent.toml", "lib/agent"):
        target = home / part
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(made.home / part, target)
    elsewhere = Installation(made.folder, extra_environment={"HOLDFAST_HOME": str(home)})
    made.processes["agent"] = elsewhere.start("agent", "holdfast-agent", "run")
    wait_until(made.agent_is_connected, seconds=60, what="the agent connects")


def copies(made: Installation) -> list[str]:
    folder = made.repository / "controller"
    return sorted(f"{p.parent.name}/{p.name}" for p in folder.rglob("*") if p.is_file())


def wait_for_copies(made: Installation, count: int = 2) -> None:
    """What happened until now is in the last one: of those that are made from now on, two."""
    last = copies(made)[-1] if copies(made) else ""

    def are_there() -> bool:
        return len([name for name in copies(made) if name > last]) >= count

    wait_until(are_there, seconds=60, what="the controller is copied")


def without_times(value: Any) -> Any:
    """What changes by itself, and with the controller's being away."""
    if isinstance(value, dict):
        return {k: without_times(v) for k, v in value.items() if k not in VOLATILE}
    return [without_times(each) for each in value] if isinstance(value, list) else value


def listed(made: Installation) -> dict[str, Any]:
    found = {
        " ".join(words): without_times(made.holdfast(*words, "--json").json()) for words in LISTINGS
    }
    shown = [
        made.holdfast("point", "show", point["point_id"], "--json").json()  # who held it, and why
        for point in found["point list"]["points"]
    ]
    assert any(point["hold_reason"] == "the auditor" for point in shown)
    return found | {"point show": without_times(shown)}


def test_a_lost_controller_comes_back_and_goes_on(installation: Installation) -> None:
    made = installation
    made.holdfast(
        "policy", "create", "nightly", "--vms", "one", "--start", "30 22 * * *", "--keep-last", "3"
    )
    made.holdfast("backup", "one", "two")
    (first,) = made.points("one")
    made.holdfast("point", "hold", first["point_id"], "--reason", "the auditor")
    made.misbehave("hold_call", {"method": "QueryChangedDiskAreas"})
    command = made.in_background("backup", "two", "--json")
    wait_until(lambda: bool(made.own_snapshots("two")), what="the snapshot is made")
    wait_for_copies(made)
    assert made.own_snapshots("two")
    before = listed(made)
    running = made.holdfast("job", "list", "--json").json()["jobs"][0]["job_id"]
    # the machine is gone, with the ledger of that snapshot
    made.kill("controller")
    command.wait()
    made.control("misbehaviour-release")
    made.control("misbehaviour-disarm")
    shutil.rmtree(made.home)
    assert made.own_snapshots("two")

    told = made.holdfast(
        "init", "--from-repository", str(made.repository),
        "--recovery-key-file", str(made.folder / "sheet"), "--json",
    ).json()  # fmt: skip
    assert told["controller_epoch"] == 2
    assert not told["points_missing"]
    assert not told["agents_unknown"]
    made.start_controller()
    wait_until(made.agent_is_connected, seconds=60, what="the agent connects again")
    assert listed(made) == before
    wait_until(lambda: not made.own_snapshots("two"), seconds=60, what="the snapshot is removed")
    jobs = {job["job_id"]: job for job in made.holdfast("job", "list", "--json").json()["jobs"]}
    assert jobs[running]["state"] == "interrupted", jobs[running]
    assert not made.holdfast("status", "--json").json()["debts"]

    made.control(
        "guest-write", vm="one", disk=0, offset=5 * UNIT, count=1, block_bytes=UNIT, seed=9
    )
    made.holdfast("backup", "one")
    second, again = made.points("one")
    assert again["point_id"] == first["point_id"]
    assert second["level"] == "incremental", second["level_reason"]
    # one block, and what the audit of change tracking reads again
    assert 0 < int(second["read_bytes"]) <= 3 * UNIT < CAPACITY // 4 < int(first["read_bytes"])
    made.holdfast("backup", "two")
    restored = made.restores / "one.vmdk"
    made.holdfast("restore", second["point_id"], "disk", "0", "--to", str(restored))
    print(f"read {first['read_bytes']}, then {second['read_bytes']}")
    made.holdfast("repo", "check", "--read-data")
    checks = made.run("holdfast", "doctor", "--json").json()["checks"]
    (line,) = [check for check in checks if check["name"] == "copy of the controller"]
    assert line["state"] == "ok", line


def test_points_made_after_the_copy_are_found_and_the_lost_one_that_lives_is_shut_out(
    installation: Installation,
) -> None:
    made = installation
    made.holdfast("backup", "one")
    wait_for_copies(made)
    made.configure(self_backup_seconds=86400.0)
    made.kill("controller")
    made.start_controller()
    wait_until(made.agent_is_connected, seconds=60, what="the agent connects again")
    made.holdfast("backup", "one")
    made.holdfast("backup", "two")
    points = {point["point_id"] for name in ("one", "two") for point in made.points(name)}
    before = copies(made)
    # it lives on: only its machine cannot be reached
    other = Installation(made.folder, extra_environment={"HOLDFAST_HOME": str(made.folder / "new")})
    told = other.holdfast(
        "init", "--from-repository", str(made.repository),
        "--recovery-key-file", str(made.folder / "sheet"), "--json",
    ).json()  # fmt: skip
    assert len(told["points_added"]) == 2
    claim, whole = "0000000002/0000000001", "0000000002/0000000002"
    assert [name for name in copies(made) if name not in before] == [claim, whole]
    # its key opens nothing any more, from its next start on
    made.kill("controller")
    made.start_controller()
    done = made.holdfast("backup", "one", expect=12)
    assert "does not open its repository any more" in done.stderr
    done = made.holdfast("status", "--nagios", expect=2)
    assert "CRITICAL" in done.stdout
    made.kill("controller")

    made.processes["controller"] = start_other(made, other)
    wait_until(lambda: agent_is_at(other), seconds=60, what="the agent comes over")
    found = {
        point["point_id"]
        for name in ("one", "two")
        for point in other.holdfast("point", "list", "--vm", name, "--json").json()["points"]
    }
    assert found == points
    other.holdfast("backup", "one")
    newest = other.holdfast("point", "list", "--vm", "one", "--json").json()["points"][0]
    assert newest["level"] == "incremental", newest["level_reason"]


def start_other(made: Installation, other: Installation) -> Any:
    ready = made.folder / "other.ready"
    process = other.start("other", "holdfast", "controller", "run", "--ready-file", str(ready))
    wait_until(ready.exists, seconds=60, what="the controller is ready")
    return process


def agent_is_at(other: Installation) -> bool:
    agents = other.holdfast("agent", "list", "--json").json()["agents"]
    return any(agent["state"] == "connected" for agent in agents)
