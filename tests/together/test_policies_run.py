"""A policy, from `holdfast policy create` to a restore point that nobody asked for by hand, with the real programs."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.installation import whole_installation
from support.waiting import wait_until

DUE_SECONDS = 150.0  # a calendar's shortest step is a minute


@pytest.mark.long  # it waits for two full minutes
def test_a_policy_backs_up_by_itself_and_a_pause_holds_it_over_a_crash_of_the_controller(
    tmp_path: Path,
) -> None:
    with whole_installation(tmp_path) as installation:
        run = installation.holdfast
        run("policy", "create", "minutely", "--vms", "web", "--start", "* * * * *")
        plan = run("plan", "--days", "0.01", expect=3)  # other VMs are in no policy
        assert "minutely is due" in plan.text
        assert "in no policy: " in plan.text
        wait_until(
            lambda: bool(installation.points("web")), seconds=DUE_SECONDS, what="a first point"
        )
        assert "policy minutely, at " in run("why", "web").text

        assert "go on with: holdfast resume" in run("pause", "--reason", "firmware").text
        installation.kill("controller")
        installation.start_controller()
        assert "firmware" in run("status").text
        before = len(installation.points("web"))
        run("pause", expect=15)
        wait_until(installation.agent_is_connected, seconds=60.0, what="the agent is back")
        run("resume")
        assert "firmware" not in run("status").text
        wait_until(
            lambda: len(installation.points("web")) > before,
            seconds=DUE_SECONDS,
            what="the policy's next point",
        )
        run("policy", "delete", "minutely", "--yes")
        wait_until(
            lambda: installation.own_snapshots("web") == [], seconds=60.0, what="all is given back"
        )
