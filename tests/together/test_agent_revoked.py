"""`holdfast agent revoke`: a live session is cut, its job fails and gives everything back, the agent stays out."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.installation import HASTY, Installation
from support.waiting import wait_until

# Slow enough that an agent which is held for a moment still counts as connected.
TIMING = {"heartbeat_seconds": 4.0, "job_lease_seconds": 8.0, "reconcile_seconds": 1.0}
DISK = {"size_bytes": 96 << 20, "content": "random", "seed": 7}
BIG = {"name": "big", "datastore": "nfs1", "disks": [DISK]}


@pytest.fixture
def holdfast(tmp_path: Path) -> Iterator[Installation]:
    installation = Installation(tmp_path / "i", program_prefix=HASTY)
    try:
        installation.start_lab()
        installation.control("vm-add", machine=BIG)
        installation.init()
        installation.configure(**TIMING)
        installation.start_controller()
        installation.add_vcenter()
        installation.enrol_agent()
        installation.start_agent()
        yield installation
    finally:
        installation.stop()


def only_agent(holdfast: Installation) -> dict[str, str]:
    (agent,) = holdfast.holdfast("agent", "list", "--json").json()["agents"]
    found: dict[str, str] = agent
    return found


def stored_bytes(holdfast: Installation) -> int:
    return sum(each.stat().st_size for each in holdfast.repository.rglob("*") if each.is_file())


def test_a_revoked_agent_is_cut_off_and_nothing_of_its_job_is_left(holdfast: Installation) -> None:
    agent_id = only_agent(holdfast)["agent_id"]
    process = holdfast.processes["agent"]
    before = stored_bytes(holdfast)
    command = holdfast.in_background("backup", "big", "--transport", "hotadd", "--json")
    wait_until(lambda: stored_bytes(holdfast) > before + (1 << 20), what="the agent copies")
    process.send_signal(signal.SIGSTOP)  # in the middle of its copy, its session alive
    try:
        assert only_agent(holdfast)["state"] == "connected"
        assert holdfast.own_snapshots("big")
        assert holdfast.attached_to_proxy()
        told = holdfast.holdfast("agent", "revoke", agent_id, "--yes").stdout
        assert "revoked" in told
        assert only_agent(holdfast)["state"] == "revoked"
    finally:
        process.send_signal(signal.SIGCONT)
    done = command.wait(120)
    (result,) = [each["job"] for each in map(json.loads, done.stdout.splitlines()) if "job" in each]
    assert (result["state"], result["error_code"]) == ("failed", "refused"), done.text
    assert "the agent was revoked in the middle of the job" in result["error"]
    assert done.status == result["exit_status"] != 0
    assert not holdfast.own_snapshots("big")
    assert not holdfast.attached_to_proxy()
    assert not holdfast.points("big")
    assert not holdfast.holdfast("status", "--json").json()["debts"]
    # it runs on, and stays out
    assert process.poll() is None
    assert "the agent was revoked" in holdfast.log("agent")
    assert only_agent(holdfast)["state"] == "revoked"
    assert "no proxy agent is connected" in holdfast.holdfast("backup", "big", expect=15).stderr
