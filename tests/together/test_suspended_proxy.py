"""Two real agents write one repository; one of them stands still past its writer lease while prune runs.

The time that passes is the storage's: the files of the leases are made as old as they would be. The agent's
own clocks tell it nothing of that, as in a VM that was suspended.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from holdfast_common.repository.lease import LEASE_SECONDS
from holdfast_common.repository.lease_survey import LEASE_MARGIN_SECONDS
from support.installation import Installation
from support.traced_steps import Step
from support.two_proxies import SECOND, TwoProxies, two_proxies
from support.waiting import wait_until

SECONDS = 60.0
PAST_THE_LEASE_SECONDS = LEASE_SECONDS + LEASE_MARGIN_SECONDS + 60
ENDED = ("done", "partial", "failed", "cancelled", "interrupted")

# whole installations, and an agent that is waited for
pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]


def prune(holdfast: Installation) -> dict[str, Any]:
    """One round without a grace time: what it did."""
    done = holdfast.holdfast("repo", "prune", "--grace-minutes", "0", "--json")
    found = [json.loads(line) for line in done.stdout.splitlines()]
    (result,) = (each for each in found if each["type"] == "result")
    change: dict[str, Any] = result["change"]
    return change


def job(holdfast: Installation, job_id: str) -> dict[str, Any]:
    found: dict[str, Any] = holdfast.holdfast("job", "show", job_id, "--json").json()["job"]
    return found


def time_passes(holdfast: Installation, seconds: float) -> None:
    """For the storage, every lease was renewed so much longer ago."""
    for path in (holdfast.repository / "leases").rglob("*"):
        if path.is_file():
            then = path.stat().st_mtime - seconds
            os.utime(path, (then, then))


@pytest.mark.parametrize(
    "step",
    [
        pytest.param(Step("agent", "put packs, before", 1), id="in the middle of its transfer"),
        pytest.param(Step("agent", "put points, before", 1), id="with leave to publish its point"),
    ],
)
def test_a_proxy_that_stood_still_past_its_writer_lease_never_shows_its_point(
    tmp_path: Path, step: Step
) -> None:
    with two_proxies(tmp_path / "i") as both:
        holdfast = both.holdfast
        gone = _something_to_prune(holdfast)
        both.stands_still_at(step)
        started = holdfast.holdfast(
            "backup", "web", "--agent", SECOND, "--transport", "direct", "--detach", "--json"
        ).json()
        job_id = started["jobs"][0]["job_id"]
        both.suspend()
        wait_until(
            lambda: job(holdfast, job_id)["state"] in ENDED, seconds=SECONDS, what="the job ends"
        )
        ended = job(holdfast, job_id)
        assert ended["state"] in ("failed", "interrupted"), ended
        assert not ended["point_id"]

        assert prune(holdfast)["counts"]["fence"] == 1
        waits = prune(holdfast)
        assert waits["counts"]["fence"] == 0
        assert f"waiting for writers at work: {job_id}" in waits["plan"]
        time_passes(holdfast, PAST_THE_LEASE_SECONDS)
        decided = prune(holdfast)
        assert decided["counts"]["fence"] == 2
        assert decided["counts"]["deleted"] > 0

        both.wake()
        _its_attempt_is_over(both)
        was_put = Step("agent", "put points, after", 1) in both.plan.steps()
        assert was_put == (step.name == "put points, before"), "it is there, and does not count"
        assert not holdfast.points("web")
        listed = holdfast.holdfast("repo", "rebuild-catalogue", "--json").json()
        assert listed["counts"]["added"] == 0, "nor is it in the repository"
        assert not [point for point in holdfast.points("app") if point["point_id"] == gone]
        _all_goes_on(holdfast)


def _something_to_prune(holdfast: Installation) -> str:
    """A forgotten point of the first proxy; its id."""
    holdfast.holdfast("backup", "app", "--transport", "direct", "--agent", "proxy1")
    gone = holdfast.newest_point("app")
    holdfast.lab("guest-write", "app", "--count", "400", "--seed", "5")  # most of it is dead then
    holdfast.holdfast("backup", "app", "--transport", "direct", "--agent", "proxy1")
    holdfast.holdfast("repo", "forget", gone, "--yes")
    return gone


def _its_attempt_is_over(both: TwoProxies) -> None:
    """The agent has done with it whatever it was going to do, and serves the controller again."""
    after = Step("agent", "attempt result, after", 1)
    wait_until(lambda: after in both.plan.steps(), seconds=SECONDS, what="the attempt ends")
    wait_until(lambda: both.second_is("connected"), seconds=SECONDS, what="it connects again")


def _all_goes_on(holdfast: Installation) -> None:
    holdfast.holdfast("check", "--read-data")
    holdfast.holdfast("backup", "web", "--agent", SECOND, "--transport", "direct")
    holdfast.holdfast("restore", holdfast.newest_point("web"), "vm", "--name", "web-back")
    assert holdfast.is_equal("web-back", original="web")
    prune(holdfast)
    holdfast.holdfast("check", "--read-data")
