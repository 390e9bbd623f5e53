"""The real programs keep their repository by themselves: points go, room comes back, and what remains restores."""

from __future__ import annotations

import base64
import random
from pathlib import Path

import pytest

from support.installation import Installation, whole_installation
from support.waiting import wait_until

DUE_SECONDS = 240.0  # a calendar's shortest step is a minute, and one task follows the other
WRITTEN_BYTES = 1 << 19


def stored_bytes(installation: Installation) -> int:
    packs = (installation.repository / "packs").rglob("*/*")
    return sum(path.stat().st_size for path in packs if path.is_file())


def overwrite(installation: Installation, seed: int) -> None:
    """The same place each time, so that only the newest point needs what is there."""
    data = base64.b64encode(random.Random(seed).randbytes(WRITTEN_BYTES)).decode()
    installation.control("guest-write", vm="web", disk=0, offset=0, data=data)


def restored(installation: Installation, point: str, name: str) -> bytes:
    target = installation.restores / f"{name}.vmdk"
    installation.holdfast("restore", point, "disk", "0", "--to", str(target), "--format", "flat")
    return target.with_name(f"{name}-flat.vmdk").read_bytes()


def result(installation: Installation, task: str) -> str:
    """How its newest run ended; empty: it did not."""
    tasks = installation.holdfast("status", "--json").json()["keeping"]["tasks"]
    (found,) = (each for each in tasks if each["task"] == task)
    return str(found.get("result", ""))


@pytest.mark.long  # its calendars come every minute
def test_points_go_by_themselves_and_room_comes_back_over_a_crash_of_the_controller(
    tmp_path: Path,
) -> None:
    with whole_installation(tmp_path) as installation:
        run = installation.holdfast
        for seed in range(4):
            overwrite(installation, seed)
            run("backup", "web")
        before = stored_bytes(installation)
        newest = installation.points("web")[0]["point_id"]
        expected = restored(installation, newest, "before")
        # a calendar that never comes while this test runs
        gold = ("policy", "create", "gold", "--vms", "web", "--start", "0 0 29 2 *")
        run(*gold, "--keep-last", "1", "--allow", "forget")
        planned = run("repo", "forget", "--by-policies", "--dry-run", "--json").json()
        assert len(planned["names"]) == 3
        assert len(installation.points("web")) == 4

        installation.kill("controller")
        installation.configure(start="* * * * *", window="", grace_hours=0, read_days=1)
        installation.start_controller()
        wait_until(
            lambda: len(installation.points("web")) == 1, seconds=DUE_SECONDS, what="points go"
        )
        installation.kill("controller")  # whatever it is at
        installation.start_controller()
        wait_until(installation.agent_is_connected, seconds=60.0, what="the agent is back")
        wait_until(
            lambda: stored_bytes(installation) < before - 2 * WRITTEN_BYTES * 9 // 10,
            seconds=DUE_SECONDS,
            what="room comes back",
        )
        for task in ("forget", "prune", "scrub", "check"):
            wait_until(
                lambda task=task: result(installation, task) == "done",  # type: ignore[misc]  # its own task
                seconds=DUE_SECONDS,
                what=f"{task} is done",
            )
        assert [each["point_id"] for each in installation.points("web")] == [newest]
        assert restored(installation, newest, "after") == expected
        text = run("status").text
        assert "keeping  forget" in text
        assert "read back, " in text
