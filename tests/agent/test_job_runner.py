"""Jobs are started once, whatever is sent twice, late or in another order."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from holdfast_agent.configuration import AgentConfiguration
from holdfast_agent.job_runner import ATTEMPTS_MAX, JobRunner
from holdfast_agent.ledger import AgentLedger
from holdfast_agent.pipelines.context import JobContext
from holdfast_agent.running_attempt import (
    AttemptState,
    Posted,
    ResultReady,
    StateChanged,
    Surroundings,
)
from holdfast_common.clock import SystemClock
from holdfast_common.errors import Interrupted, NoRepository
from holdfast_common.extents import Extent
from holdfast_common.identity import AgentId, JobId, RepositoryId, new_ulid
from holdfast_common.job_result import JobResult, Outcome
from holdfast_common.job_spec import Attempt, CheckRepository, DiskTicket, JobSpec, ListPoints
from support.session_rig import check_spec, new_attempt, patience


class NoCalls:
    """No controller: these tests need none."""

    def fetch_extents(self, attempt: Attempt, device_key: int) -> Iterator[Extent]:
        raise AssertionError((attempt, device_key))

    def open_segment_keys(self, attempt: Attempt, headers: Sequence[bytes]) -> list[bytes]:
        raise AssertionError((attempt, headers))

    def renew_ticket(self, attempt: Attempt, device_key: int) -> DiskTicket:
        raise AssertionError((attempt, device_key))


class Bench:
    """A runner whose job waits for `gate` and notes when it is at work."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.gate = threading.Event()
        self.posted: list[Posted] = []
        self.at_work: list[Attempt] = []
        self.together_max = 0
        self.runs: list[Attempt] = []
        self.closing_seconds = 0.0
        self._lock = threading.Lock()
        self.runner = self.new_runner()

    def new_runner(self) -> JobRunner:
        return JobRunner(
            surroundings=Surroundings(
                agent_id=AgentId(new_ulid()),
                signing_key=Ed25519PrivateKey.generate(),
                calls=NoCalls(),
                post=self.posted.append,
                clock=SystemClock(),
            ),
            configuration=lambda: AgentConfiguration(controller="c:1", repositories={"r": "/r"}),
            ledger=AgentLedger(self.folder),
            pipelines=lambda: {CheckRepository: self._job},
        )

    def start(self, attempt: Attempt, *, digest: bytes = b"digest") -> StateChanged:
        ends_at = time.monotonic() + 3600
        return self.runner.start(attempt, check_spec(), digest, lease_ends_at=ends_at)

    def ended(self) -> list[Attempt]:
        return [posted.attempt for posted in self.posted if isinstance(posted, ResultReady)]

    def close(self) -> None:
        self.gate.set()
        self.runner.stop()
        assert self.runner.wait_ended(20)

    def _job(self, _spec: JobSpec, context: JobContext) -> JobResult:
        with self._lock:
            self.runs.append(context.attempt)
            self.at_work.append(context.attempt)
            same_job = [at for at in self.at_work if at.job_id == context.attempt.job_id]
            self.together_max = max(self.together_max, len(same_job))
        try:
            while not self.gate.wait(0.005):
                context.check()
            return JobResult(outcome=Outcome.DONE)
        finally:
            threading.Event().wait(self.closing_seconds)  # as if disks were closed
            with self._lock:
                self.at_work.remove(context.attempt)


@pytest.fixture(name="bench")
def fresh_bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path / "attempts")
    yield bench
    bench.close()


def test_the_same_start_again_gets_the_present_state_and_starts_nothing(bench: Bench) -> None:
    attempt = new_attempt()
    assert bench.start(attempt).state is AttemptState.ACCEPTED
    patience(lambda: bench.runs)
    assert bench.start(attempt).state is AttemptState.RUNNING
    bench.gate.set()
    patience(lambda: bench.ended() == [attempt])
    assert bench.start(attempt).state is AttemptState.FINISHED
    assert bench.ended() == [attempt, attempt]  # not acknowledged yet, so it is said again
    bench.runner.acknowledged(attempt)
    assert bench.start(attempt).state is AttemptState.FINISHED
    assert bench.runs == [attempt]


def test_another_job_under_the_same_attempt_is_refused(bench: Bench) -> None:
    attempt = new_attempt()
    bench.start(attempt)
    answer = bench.start(attempt, digest=b"another")
    assert answer.state is AttemptState.REFUSED
    assert answer.error is not None
    assert answer.error.code == "refused"


def test_a_lower_attempt_is_refused_also_when_the_higher_one_has_ended(bench: Bench) -> None:
    high = new_attempt(5)
    bench.start(high)
    low = new_attempt(4, high.job_id)
    assert bench.start(low).state is AttemptState.REFUSED
    bench.gate.set()
    patience(lambda: bench.ended() == [high])
    bench.runner.acknowledged(high)
    assert bench.start(low).state is AttemptState.REFUSED
    assert bench.runs == [high]


def test_a_higher_attempt_begins_only_when_the_lower_ones_disks_are_closed(bench: Bench) -> None:
    bench.closing_seconds = 0.2
    first = new_attempt(1)
    bench.start(first)
    patience(lambda: bench.runs == [first])
    second, third = new_attempt(2, first.job_id), new_attempt(3, first.job_id)
    assert bench.start(second).state is AttemptState.ACCEPTED
    assert bench.start(third).state is AttemptState.ACCEPTED
    patience(lambda: third in bench.runs)
    bench.gate.set()
    patience(lambda: set(bench.ended()) == {first, second, third})
    assert bench.together_max == 1
    results = {ready.attempt: ready.result for ready in bench.runner.results()}
    assert results[first].outcome is Outcome.INTERRUPTED
    assert results[third].outcome is Outcome.DONE


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(
        st.tuples(st.integers(0, 1), st.integers(1, 4), st.booleans()), min_size=1, max_size=25
    )
)
def test_whatever_order_starts_come_in_no_attempt_runs_twice_or_beside_another(
    tmp_path_factory: pytest.TempPathFactory, orders: list[tuple[int, int, bool]]
) -> None:
    bench = Bench(tmp_path_factory.mktemp("bench") / "attempts")
    jobs = [JobId(new_ulid()), JobId(new_ulid())]
    highest = {0: 0, 1: 0}
    for job, number, cancel in orders:
        attempt = new_attempt(number, jobs[job])
        answer = bench.start(attempt)
        assert (answer.state is AttemptState.REFUSED) == (number < highest[job])
        highest[job] = max(highest[job], number)
        if cancel:
            bench.runner.cancel(attempt)
    bench.close()
    assert len(bench.runs) == len(set(bench.runs))
    assert bench.together_max <= 1
    for ready in bench.runner.results():
        bench.runner.acknowledged(ready.attempt)
    assert not list(bench.folder.iterdir())


def test_an_accepted_attempt_without_a_result_was_interrupted(bench: Bench) -> None:
    attempt, finished = new_attempt(), new_attempt()
    ledger = AgentLedger(bench.folder)
    ledger.accepted(attempt)
    ledger.accepted(finished)
    ledger.write_result(finished, b"\x0a\x04done")  # a result's first field: its outcome
    later = bench.new_runner()
    results = {ready.attempt: ready.result for ready in later.results()}
    assert results[attempt].outcome is Outcome.INTERRUPTED
    error = results[attempt].error
    assert error is not None
    assert error.code == Interrupted.code
    assert results[finished].outcome is Outcome.DONE
    answer = later.start(attempt, check_spec(), b"any", lease_ends_at=0)
    assert answer.state is AttemptState.FINISHED
    later.acknowledged(attempt)
    later.acknowledged(finished)
    assert not list(bench.folder.iterdir())


def test_a_damaged_result_counts_as_interrupted(bench: Bench) -> None:
    attempt = new_attempt()
    ledger = AgentLedger(bench.folder)
    ledger.accepted(attempt)
    ledger.write_result(attempt, b"\xff\xff\xff")
    [ready] = bench.new_runner().results()
    assert ready.result.outcome is Outcome.INTERRUPTED


def test_no_more_jobs_than_the_agent_takes(bench: Bench) -> None:
    for _ in range(ATTEMPTS_MAX):
        assert bench.start(new_attempt()).state is AttemptState.ACCEPTED
    answer = bench.start(new_attempt())
    assert answer.error is not None
    assert (answer.state, answer.error.code) == (AttemptState.REFUSED, "locked")


def test_a_stopping_agent_takes_no_job(bench: Bench) -> None:
    bench.runner.stop()
    assert bench.start(new_attempt()).state is AttemptState.REFUSED


def test_work_that_this_agent_cannot_do_ends_as_failed(bench: Bench) -> None:
    spec = check_spec()
    other = JobSpec(run_id=spec.run_id, repository_id=spec.repository_id, work=ListPoints(keys=()))
    attempt = new_attempt()
    bench.runner.start(attempt, other, b"d", lease_ends_at=time.monotonic() + 60)
    patience(bench.ended)
    [ready] = bench.runner.results()
    assert ready.result.error is not None
    assert ready.result.error.code == "capability_absent"


def test_a_lease_that_is_over_at_the_start_starts_nothing(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "attempts")
    bench.runner._surroundings = Surroundings(
        agent_id=AgentId("a"),
        signing_key=Ed25519PrivateKey.generate(),
        calls=NoCalls(),
        post=bench.posted.append,
        clock=SystemClock(),
        lease_wait_seconds=0.05,
    )
    attempt = new_attempt()
    bench.runner.start(attempt, check_spec(), b"d", lease_ends_at=time.monotonic() - 1)
    patience(bench.ended)
    assert bench.runs == []
    [ready] = bench.runner.results()
    assert ready.result.error is not None
    assert ready.result.error.code == "lease_expired"


def test_a_repository_that_is_not_configured_is_exit_10(bench: Bench) -> None:
    seen: list[object] = []

    def look(_spec: JobSpec, context: JobContext) -> JobResult:
        seen.append(context.repository_path(RepositoryId("r")))
        with pytest.raises(NoRepository) as caught:
            context.repository_path(RepositoryId("unknown"))
        seen.append(caught.value.exit_status)
        return JobResult(outcome=Outcome.DONE)

    bench.runner._pipelines = lambda: {CheckRepository: look}
    bench.start(new_attempt())
    patience(bench.ended)
    assert seen == [Path("/r"), 10]
