"""What a retention rule may not take, whatever it says: held, read, last good points, and any by a doubtful clock."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from types import SimpleNamespace

import pytest

from holdfast_common.clock import SystemClock, utc_text
from holdfast_common.errors import Refused, UsageError
from holdfast_common.identity import JobId, PointId
from holdfast_common.job_result import DamageFound, JobResult, Outcome, Warned
from holdfast_common.places import Places
from holdfast_common.wire import operator_pb2
from holdfast_controller import main
from holdfast_controller.commands import repository_change
from holdfast_controller.decide.job_state import JobEvent
from holdfast_controller.runs.engine import Engine
from holdfast_controller.runs.requests import CheckRequest
from holdfast_controller.service.point_actions import PointActions
from holdfast_controller.service.repository_actions import RepositoryActions
from holdfast_controller.store.new_jobs import NewJob
from support.one_process import OneProcess

LAST = operator_pb2.RetentionRule(keep_last=1)
Cli = Callable[..., int]


@pytest.fixture
def cli(holdfast: OneProcess, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """`holdfast repo forget` beside the controller's own actions; ``between``: called between plan and deed."""
    actions = RepositoryActions(holdfast.world, holdfast.engine)

    def run(*arguments: str, answer: str = "", between: Callable[[], object] = int) -> int:
        calls: list[operator_pb2.ForgetRequest] = []

        def call(
            method: Callable[[operator_pb2.ForgetRequest], operator_pb2.RepositoryChange],
            request: operator_pb2.ForgetRequest,
        ) -> operator_pb2.RepositoryChange:
            if calls:
                between()
            calls.append(request)
            return method(request)

        @contextmanager
        def operators(_: Places) -> Iterator[SimpleNamespace]:
            yield SimpleNamespace(stub=SimpleNamespace(ForgetPoints=actions.forget), call=call)

        monkeypatch.setattr(repository_change, "operators", operators)
        monkeypatch.setattr("sys.stdin", io.StringIO(answer))
        return main.run(["repo", "forget", *arguments])

    return run


def points(holdfast: OneProcess, count: int) -> list[str]:
    """Oldest first; each a day older than the next, as far as the catalogue knows."""
    found = [str(holdfast.back_up("web").point_id) for _ in range(count)]
    database = holdfast.world.catalogue._database
    with database.transaction() as connection:
        for days, point_id in enumerate(reversed(found)):
            at = utc_text(SystemClock().now() - timedelta(days=days))
            connection.execute(
                "UPDATE points SET created_at = ? WHERE point_id = ?", (at, point_id)
            )
    return found


def known(holdfast: OneProcess) -> set[str]:
    return {row.point_id for row in holdfast.world.catalogue.points()}


def rule_says(holdfast: OneProcess, engine: Engine | None = None) -> dict[str, tuple[bool, str]]:
    """By point: whether "keep the last" keeps it, and all reasons; nothing is changed."""
    world = holdfast.world if engine is None else engine._world
    actions = RepositoryActions(world, engine or holdfast.engine)
    change = actions.forget(operator_pb2.ForgetRequest(rule=LAST, dry_run=True))
    assert set(change.names) == {each.point_id for each in change.decisions if not each.kept}
    return {each.point_id: (each.kept, "; ".join(each.reasons)) for each in change.decisions}


def started(holdfast: OneProcess, kind: str, **request: object) -> JobId:
    """A job that only the table of jobs knows."""
    jobs = [NewJob(kind=kind, subject="one that goes on")]
    run_id = holdfast.world.jobs.create_run(kind=kind, request=request, jobs=jobs)
    (job,) = holdfast.world.jobs.jobs_of_run(run_id)
    return job.job_id


def test_the_dry_run_tells_of_each_point_why_and_the_real_run_does_the_same_but_for_what_is_held_meanwhile(
    holdfast: OneProcess, cli: Cli, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second, third, fourth = points(holdfast, 4)
    acting = PointActions(holdfast.world, holdfast.engine.care)
    acting.hold(operator_pb2.HoldRequest(point_id=first, reason="a court asked"))
    rule = ("--vm", "web", "--keep-daily", "1", "--keep-within", "12h")
    assert cli(*rule, "--dry-run", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    today = holdfast.world.catalogue.point(fourth).created_at[:10]
    assert [(each["point_id"], each["kept"], each["reasons"]) for each in told["decisions"]] == [
        (
            fourth,
            True,
            [
                "taken within 12h",
                f"the last of {today} (daily 1 of 1)",
                "the last good point of its VM",
            ],
        ),
        (third, False, ["older than 12h", "beyond 1 daily"]),
        (second, False, ["older than 12h", "beyond 1 daily"]),
        (first, True, ["held: a court asked"]),
    ]
    assert (set(told["names"]), told["done"]) == ({second, third}, False)
    assert cli(*rule, "--dry-run") == 0
    table = capsys.readouterr().out
    assert "WHY" in table
    assert "held: a court asked" in table
    assert cli(*rule, answer="n\n") != 0, "it asks"
    assert known(holdfast) == {first, second, third, fourth}
    hold = operator_pb2.HoldRequest(point_id=second, reason="asked again")
    assert cli(*rule, answer="y\n", between=lambda: acting.hold(hold)) == 0
    assert known(holdfast) == {first, second, fourth}
    with pytest.raises(UsageError, match="duration"):
        RepositoryActions(holdfast.world, holdfast.engine).forget(
            operator_pb2.ForgetRequest(rule=operator_pb2.RetentionRule(keep_within="soon"))
        )


def test_what_a_job_reads_stays_also_when_it_is_named_until_that_job_ended(
    holdfast: OneProcess, cli: Cli, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second, third = points(holdfast, 3)
    restore = started(holdfast, "restore", point=first)
    assert rule_says(holdfast)[first] == (True, f"a restore reads it: job {restore}")
    assert rule_says(holdfast)[second][0] is False
    assert cli(first, "--yes") == Refused.exit_status
    assert f"a restore reads it: job {restore}" in capsys.readouterr().err
    check = started(holdfast, "check", read_data=True, points=[second])
    assert rule_says(holdfast)[second] == (True, f"a check reads it: job {check}")
    for job in (restore, check):
        holdfast.world.jobs.advance(job, JobEvent.END_CANCELLED)
    assert not rule_says(holdfast)[first][0]
    repair = started(holdfast, "repair")
    assert all(kept for kept, _ in rule_says(holdfast).values()), "it reads all"
    holdfast.world.jobs.advance(repair, JobEvent.END_CANCELLED)
    assert cli("--keep-last", "1", "--yes", between=lambda: holdfast.back_up("web")) == 0
    assert not {first, second} & known(holdfast)
    assert third in known(holdfast), "beyond the newest one now, and nobody agreed to that"


def test_a_damaged_or_doubtful_point_is_not_the_last_good_one_and_a_check_of_all_data_clears_it(
    holdfast: OneProcess,
) -> None:
    first, second, third = points(holdfast, 3)
    check = started(holdfast, "check", read_data=True, subset="5%", points=[])
    found = DamageFound(object_name="packs/aa/bb", problem="cut", point_id=third, device_key=2000)
    holdfast.world.damages.keep(check, JobResult(outcome=Outcome.FAILED, damages=(found,)))
    holdfast.world.jobs.advance(check, JobEvent.END_FAILED)
    lineage = holdfast.world.catalogue.point(second).lineage_id
    holdfast.world.catalogue.doubt_tracking(lineage, "it was caught", suspects=[second])
    told = rule_says(holdfast)
    assert told[first] == (True, "one of the newest (last 1 of 1); the last good point of its VM")
    assert told[second][0] is False
    assert told[second][1] == "beyond the newest 1; in doubt: it was caught"
    assert told[third] == (
        True,
        f"one of the newest (last 1 of 1), if it were whole: it lost data (found by job {check})",
    )
    whole = holdfast.ended(holdfast.engine.start_check(CheckRequest(read_data=True)))
    assert whole.error is None
    assert [point for point, (kept, _) in rule_says(holdfast).items() if kept] == [third]


def test_a_backup_with_less_than_was_asked_for_is_not_the_last_good_one(
    holdfast: OneProcess,
) -> None:
    first, second = points(holdfast, 2)
    jobs = holdfast.world.jobs
    job_id = holdfast.world.catalogue.point(second).job_id
    assert rule_says(holdfast)[first][0] is False
    for code, stays in (("not_protected", True), ("left_behind", False)):
        warned = Warned(code=code, message="an independent disk")
        jobs.set_result(job_id, error=None, warnings=[warned], point_id=PointId(second))
        with jobs._database.transaction() as connection:
            connection.execute("UPDATE jobs SET state = 'partial' WHERE job_id = ?", (job_id,))
        told = rule_says(holdfast)
        assert told[first][0] is stays, code
        assert told[second][1].endswith("partial: an independent disk") is stays


class _LateClock(SystemClock):
    def now(self) -> datetime:
        return super().now() + timedelta(days=3)


def test_by_a_clock_that_jumped_a_rule_drops_nothing_unless_somebody_says_that_it_is_right(
    holdfast: OneProcess,
) -> None:
    first, second = points(holdfast, 2)
    late = Engine(replace(holdfast.world, clock=_LateClock()))
    kept, why = rule_says(holdfast, late)[first]
    assert kept
    assert "nothing is dropped by a doubtful clock" in why
    assert "--accept-clock" in why
    actions = RepositoryActions(late._world, late)
    accepted = operator_pb2.ForgetRequest(rule=LAST, accept_clock=True)
    assert list(actions.forget(accepted).names) == [first]
    assert known(holdfast) == {second}
