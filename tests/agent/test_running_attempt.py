"""A lease is a moment of the monotonic clock; nothing happens after it."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from holdfast_agent.configuration import AgentConfiguration
from holdfast_agent.pipelines.context import Grant
from holdfast_agent.running_attempt import (
    AttemptState,
    CommitAsked,
    Posted,
    ProgressMade,
    RunningAttempt,
    Surroundings,
)
from holdfast_common.clock import SystemClock
from holdfast_common.errors import (
    Cancelled,
    HoldfastError,
    Interrupted,
    LeaseExpired,
    RepositoryFull,
)
from holdfast_common.identity import AgentId
from holdfast_common.job_result import ErrorReport
from support.session_rig import check_spec, new_attempt, patience

GRANT = Grant(controller_epoch=1, signature=b"s")


class SetClock(SystemClock):
    """A monotonic clock that stands where it is put."""

    def __init__(self) -> None:
        self.moment = 1000.0

    def monotonic_seconds(self) -> float:
        return self.moment


def attempt_with(
    clock: SystemClock, posted: list[Posted], *, lease_wait_seconds: float = 20.0
) -> RunningAttempt:
    return RunningAttempt(
        attempt=new_attempt(),
        spec=check_spec(),
        configuration=AgentConfiguration(controller="c:1"),
        surroundings=Surroundings(
            agent_id=AgentId("a"),
            signing_key=Ed25519PrivateKey.generate(),
            calls=None,  # type: ignore[arg-type]  # nobody calls
            post=posted.append,
            clock=clock,
            lease_wait_seconds=lease_wait_seconds,
        ),
        lease_ends_at=clock.monotonic_seconds() + 45,
    )


def in_thread(work: Callable[[], object]) -> tuple[threading.Thread, list[object]]:
    outcome: list[object] = []

    def run() -> None:
        try:
            outcome.append(work())
        except HoldfastError as error:
            outcome.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, outcome


def test_check_passes_until_the_very_end_of_the_lease() -> None:
    clock = SetClock()
    job = attempt_with(clock, [])
    clock.moment = 1044.999
    job.check()
    clock.moment = 1065.0  # 45 + 20: the controller has given it up
    with pytest.raises(LeaseExpired):
        job.check()
    job.renew_lease(2000.0)
    with pytest.raises(LeaseExpired):  # for good
        job.check()


def test_check_waits_for_a_lease_that_comes_back() -> None:
    clock = SetClock()
    job = attempt_with(clock, [])
    clock.moment = 1050.0
    thread, outcome = in_thread(job.check)
    thread.join(0.1)
    assert thread.is_alive()
    job.renew_lease(1100.0)
    thread.join(10)
    assert outcome == [None]


@pytest.mark.parametrize("error", [Cancelled("c"), Interrupted("i"), LeaseExpired("l")])
def test_a_stop_is_heard_at_the_next_block_and_while_waiting(error: HoldfastError) -> None:
    clock = SetClock()
    running, waiting = attempt_with(clock, []), attempt_with(clock, [])
    running.stop(error)
    running.stop(Interrupted("a later reason does not count"))
    with pytest.raises(type(error)) as caught:
        running.check()
    assert caught.value.message == error.message
    waiting.renew_lease(0.0 + 999.0)
    thread, outcome = in_thread(waiting.check)
    waiting.stop(error)
    thread.join(10)
    assert isinstance(outcome[0], type(error))


def test_a_commit_waits_for_its_own_grant() -> None:
    posted: list[Posted] = []
    job = attempt_with(SystemClock(), posted)
    thread, outcome = in_thread(lambda: job.request_commit(b"right"))
    patience(lambda: posted)
    assert posted == [CommitAsked(attempt=job.attempt, manifest_digest=b"right")]
    assert job.pending_commit() == b"right"
    job.commit_granted(b"wrong", GRANT)
    thread.join(0.1)
    assert thread.is_alive()
    assert job.pending_commit() == b"right"
    job.commit_granted(b"right", GRANT)
    thread.join(10)
    assert outcome == [GRANT]
    assert job.state is AttemptState.COMMITTING
    assert job.pending_commit() is None


def test_a_grant_is_worth_nothing_without_the_lease() -> None:
    clock = SetClock()
    posted: list[Posted] = []
    job = attempt_with(clock, posted)
    thread, outcome = in_thread(lambda: job.request_commit(b"d"))
    patience(lambda: posted)
    clock.moment = 1046.0
    job.commit_granted(b"d", GRANT)
    thread.join(0.1)
    assert thread.is_alive()
    job.stop(LeaseExpired("the controller gave this attempt up"))
    thread.join(10)
    assert isinstance(outcome[0], LeaseExpired)


def test_a_refused_commit_raises_why() -> None:
    posted: list[Posted] = []
    job = attempt_with(SystemClock(), posted)
    thread, outcome = in_thread(lambda: job.request_commit(b"d"))
    patience(lambda: posted)
    job.commit_refused(ErrorReport.of(RepositoryFull("no room")))
    thread.join(10)
    assert isinstance(outcome[0], RepositoryFull)


def test_a_cancelled_job_does_not_wait_for_a_grant() -> None:
    posted: list[Posted] = []
    job = attempt_with(SystemClock(), posted)
    thread, outcome = in_thread(lambda: job.request_commit(b"d"))
    patience(lambda: posted)
    job.stop(Cancelled("cancelled"))
    thread.join(10)
    assert isinstance(outcome[0], Cancelled)


def test_progress_is_posted_at_most_once_a_second() -> None:
    clock = SetClock()
    posted: list[Posted] = []
    job = attempt_with(clock, posted)
    for step in range(100):
        clock.moment = 1000.0 + step * 0.05
        job.report(done_bytes=step, total_bytes=100, device_key=2000, phase="transfer")
    made = [item.report for item in posted if isinstance(item, ProgressMade)]
    assert [report.sequence for report in made] == [1, 2, 3, 4, 5]
    assert [report.done_bytes for report in made] == [0, 20, 40, 60, 80]
