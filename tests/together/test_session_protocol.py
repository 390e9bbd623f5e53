"""The controller's side of the protocol, by an agent that a test drives message by message."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import grpc
import pytest

from holdfast_common.errors import HoldfastError, Refused
from holdfast_common.identity import new_ulid
from holdfast_common.job_result import JobResult, Outcome
from holdfast_common.job_spec import Attempt
from holdfast_common.trust.channels import open_agent_channel
from holdfast_common.trust.controller_trust import load_credentials
from holdfast_common.wire import session_pb2, session_pb2_grpc
from holdfast_common.wire_codec.call_errors import error_of_call
from holdfast_common.wire_codec.results import job_result_to_message
from holdfast_common.wire_codec.values import attempt_from_message, attempt_to_message
from support.session_rig import (
    FAST,
    AgentRig,
    ControllerRig,
    RecordingHandler,
    check_spec,
    controller_rig,
    done_at_once,
    new_attempt,
    patience,
)


class DrivenAgent:
    """A stream in the test's hands. `expect` skips nothing but heartbeats' answers."""

    def __init__(self, stub: session_pb2_grpc.AgentsStub) -> None:
        self.stub = stub
        self._outgoing: queue.Queue[session_pb2.FromAgent | None] = queue.Queue()
        self._stream = stub.Session(iter(self._outgoing.get, None))
        self._number = 0

    def say(self, **message: object) -> None:
        self._outgoing.put(session_pb2.FromAgent(**message))  # type: ignore[arg-type]  # one field of it

    def hello(self, **fields: object) -> session_pb2.Welcome:
        usual: dict[str, object] = {
            "boot_id": new_ulid(),
            "features": ["image-1"],
            "role": "proxy",
        }
        self.say(hello=session_pb2.Hello(**{**usual, **fields}))  # type: ignore[arg-type]  # a test's choice
        return self.expect("welcome").welcome

    def expect(self, kind: str) -> session_pb2.ToAgent:
        for message in self._stream:
            found = message.WhichOneof("message")
            if found == kind:
                return message
            assert found == "heartbeat_ack", message
        raise AssertionError("the stream has ended")

    def heartbeat(self) -> dict[Attempt, int]:
        self._number += 1
        self.say(heartbeat=session_pb2.Heartbeat(number=self._number))
        ack = self.expect("heartbeat_ack").heartbeat_ack
        assert ack.number == self._number
        return {attempt_from_message(lease.attempt): lease.valid_ms for lease in ack.leases}

    def ends_with(self) -> HoldfastError:
        """The error that ends the stream."""
        with pytest.raises(grpc.RpcError) as caught:
            for _ in self._stream:
                pass
        self.status = caught.value.code()
        return error_of_call(caught.value)

    def accept(self) -> Attempt:
        start = self.expect("start_job").start_job
        self.state(start.attempt, session_pb2.AGENT_JOB_STATE_ACCEPTED)
        return attempt_from_message(start.attempt)

    def state(
        self, attempt: session_pb2.Attempt, state: session_pb2.AgentJobState.ValueType
    ) -> None:
        self.say(job_state=session_pb2.JobState(attempt=attempt, state=state))

    def finish(self, attempt: Attempt, outcome: Outcome = Outcome.DONE) -> None:
        result = job_result_to_message(JobResult(outcome=outcome))
        self.say(
            job_finished=session_pb2.JobFinished(attempt=attempt_to_message(attempt), result=result)
        )

    def hang_up(self) -> None:
        self._outgoing.put(None)
        self._stream.cancel()


@pytest.fixture(name="controller")
def listening_controller(tmp_path: Path) -> Iterator[ControllerRig]:
    # Nobody sends heartbeats unasked here, so silence alone must not end a session.
    with controller_rig(
        tmp_path / "controller", timing=replace(FAST, silence_heartbeats=200.0)
    ) as rig:
        yield rig


@pytest.fixture(name="enrolled")
def enrolled_agent(controller: ControllerRig, tmp_path: Path) -> AgentRig:
    return AgentRig(controller, tmp_path / "agent", done_at_once)


@contextmanager
def driven(controller: ControllerRig, agent: AgentRig) -> Iterator[DrivenAgent]:
    credentials = load_credentials(agent.places.agent_state / "identity.pem")
    target = f"127.0.0.1:{controller.bound.session}"
    with open_agent_channel(target, credentials) as channel:
        driver = DrivenAgent(session_pb2_grpc.AgentsStub(channel))
        try:
            yield driver
        finally:
            driver.hang_up()


@contextmanager
def started(
    controller: ControllerRig, agent: AgentRig, attempt: Attempt, handler: RecordingHandler
) -> Iterator[None]:
    """`AgentSessions.start` in a thread, while the test answers; its error is raised at the end."""
    with ThreadPoolExecutor(1) as pool:
        starting = pool.submit(
            controller.sessions.start, agent.agent_id, attempt, check_spec(), handler
        )
        yield
        starting.result(30)


def test_the_welcome_tells_times_features_and_a_rising_epoch(
    controller: ControllerRig, enrolled: AgentRig
) -> None:
    epochs = []
    for _ in range(3):
        with driven(controller, enrolled) as agent:
            welcome = agent.hello(features=["image-1", "from-the-future"])
            assert list(welcome.features) == ["image-1"]
            assert (welcome.heartbeat_ms, welcome.job_lease_ms) == (300, 2500)
            epochs.append(welcome.session_epoch)
    assert epochs == [1, 2, 3]


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"required_features": ["from-the-future"]}, "from-the-future"),
        ({"features": []}, "image-1"),
    ],
)
def test_a_missing_required_feature_is_named(
    controller: ControllerRig, enrolled: AgentRig, fields: dict[str, object], problem: str
) -> None:
    with driven(controller, enrolled) as agent:
        usual: dict[str, object] = {"features": ["image-1"], "role": "proxy"}
        agent.say(hello=session_pb2.Hello(**{**usual, **fields}))  # type: ignore[arg-type]  # a test's choice
        error = agent.ends_with()
        assert agent.status is grpc.StatusCode.FAILED_PRECONDITION
        assert error.facts["feature"] == problem


def test_a_hello_of_another_role_is_refused(controller: ControllerRig, enrolled: AgentRig) -> None:
    with driven(controller, enrolled) as agent:
        agent.say(hello=session_pb2.Hello(features=["image-1"], role="restore"))
        assert isinstance(agent.ends_with(), Refused)
    assert controller.sessions.connected() == []


@pytest.mark.parametrize("kind", ["heartbeat", "job_finished"])
def test_a_session_begins_with_a_hello(
    controller: ControllerRig, enrolled: AgentRig, kind: str
) -> None:
    with driven(controller, enrolled) as agent:
        agent.say(**{kind: {}})
        assert agent.ends_with().code == "usage"


def test_what_an_agent_may_read_copies_from_is_known_while_it_is_connected_and_afterwards(
    controller: ControllerRig, enrolled: AgentRig
) -> None:
    with driven(controller, enrolled) as agent:
        agent.hello(capabilities=session_pb2.Capabilities(repair_folders=["/copies", "/mnt"]))
        (connected,) = controller.sessions.connected()
        assert connected.repair_folders == ("/copies", "/mnt")
    row = controller.agents.get(enrolled.agent_id)
    assert row.capabilities.repair_folders == ("/copies", "/mnt")


def test_a_newer_session_ends_the_older_one(controller: ControllerRig, enrolled: AgentRig) -> None:
    with driven(controller, enrolled) as older, driven(controller, enrolled) as newer:
        older.hello()
        newer.hello()
        goodbye = older.expect("goodbye").goodbye
        assert "newer session" in goodbye.error.message
        assert isinstance(older.ends_with(), Refused)
        newer.heartbeat()
        assert len(controller.sessions.connected()) == 1


def test_leases_come_with_heartbeats_for_what_the_agent_holds(
    controller: ControllerRig, enrolled: AgentRig
) -> None:
    handler, attempt = RecordingHandler(), new_attempt()
    with driven(controller, enrolled) as agent:
        agent.hello()
        assert agent.heartbeat() == {}
        with started(controller, enrolled, attempt, handler):
            assert agent.accept() == attempt
        assert agent.heartbeat() == {attempt: 2500}
        agent.finish(attempt)
        assert attempt_from_message(agent.expect("result_ack").result_ack.attempt) == attempt
        assert agent.heartbeat() == {}
    assert len(handler.results) == 1


def test_a_result_that_is_sent_twice_is_kept_once_and_acknowledged_twice(
    controller: ControllerRig, enrolled: AgentRig
) -> None:
    handler, attempt = RecordingHandler(), new_attempt()
    with driven(controller, enrolled) as agent:
        agent.hello()
        with started(controller, enrolled, attempt, handler):
            agent.accept()
        agent.finish(attempt)
        agent.expect("result_ack")
        agent.finish(attempt, Outcome.FAILED)
        agent.expect("result_ack")
    assert [result.outcome for result in handler.results] == [Outcome.DONE]
    assert [result.outcome for _, result in controller.orphans.results] == [Outcome.FAILED]


def test_a_refused_start_raises_why(controller: ControllerRig, enrolled: AgentRig) -> None:
    def refuse(agent: DrivenAgent, attempt: Attempt) -> None:
        start = agent.expect("start_job").start_job
        assert attempt_from_message(start.attempt) == attempt
        state = session_pb2.JobState(
            attempt=start.attempt, state=session_pb2.AGENT_JOB_STATE_REFUSED
        )
        state.error.code, state.error.message = "locked", "as many jobs as it takes"
        agent.say(job_state=state)

    attempt, handler = new_attempt(), RecordingHandler()
    with driven(controller, enrolled) as agent:
        agent.hello()
        answering = threading.Thread(target=refuse, args=(agent, attempt))
        answering.start()
        with pytest.raises(Refused, match="as many jobs"):
            controller.sessions.start(enrolled.agent_id, attempt, check_spec(), handler)
        answering.join(10)
        assert agent.heartbeat() == {}


def test_an_attempt_that_the_agent_forgot_counts_as_interrupted(
    controller: ControllerRig, enrolled: AgentRig
) -> None:
    handler, attempt = RecordingHandler(), new_attempt()
    with driven(controller, enrolled) as agent:
        agent.hello()
        with started(controller, enrolled, attempt, handler):
            agent.accept()
    with driven(controller, enrolled) as agent:
        agent.hello()
        assert handler.has_finished.wait(10)
    assert [result.outcome for result in handler.results] == [Outcome.INTERRUPTED]


def test_the_verdict_is_continue_for_what_is_known_and_abort_for_all_else(
    controller: ControllerRig, enrolled: AgentRig
) -> None:
    handler, attempt = RecordingHandler(), new_attempt()
    stale = new_attempt(0, attempt.job_id)
    unknown = new_attempt()
    with driven(controller, enrolled) as agent:
        agent.hello()
        with started(controller, enrolled, attempt, handler):
            agent.accept()
    time.sleep(FAST.job_lease + 0.1)
    with driven(controller, enrolled) as agent:
        running = [
            session_pb2.RunningJob(attempt=attempt_to_message(each), state=state)
            for each, state in (
                (attempt, session_pb2.AGENT_JOB_STATE_RUNNING),
                (stale, session_pb2.AGENT_JOB_STATE_RUNNING),
                (unknown, session_pb2.AGENT_JOB_STATE_COMMITTING),
            )
        ]
        welcome = agent.hello(running=running)
        verdicts = {attempt_from_message(found.attempt): found.verdict for found in welcome.running}
    assert verdicts == {
        attempt: session_pb2.VERDICT_CONTINUE,
        stale: session_pb2.VERDICT_ABORT,
        unknown: session_pb2.VERDICT_ABORT,
    }


def test_nobody_is_served_for_an_attempt_that_another_agent_holds(
    controller: ControllerRig, enrolled: AgentRig, tmp_path: Path
) -> None:
    handler, attempt = RecordingHandler(), new_attempt()
    other = AgentRig(controller, tmp_path / "other", done_at_once, host_name="other")
    with driven(controller, enrolled) as holder, driven(controller, other) as thief:
        holder.hello()
        thief.hello()
        with started(controller, enrolled, attempt, handler):
            holder.accept()
        disk = session_pb2.JobDisk(attempt=attempt_to_message(attempt), device_key=2000)
        keys = session_pb2.OpenSegmentKeysRequest(
            attempt=attempt_to_message(attempt),
            segments=[session_pb2.SegmentKeyRequest(header=b"abc")],
        )
        assert list(holder.stub.FetchExtents(disk, timeout=10)) == []
        assert holder.stub.OpenSegmentKeys(keys, timeout=10).keys == [b"cba"]
        for call in (
            lambda: list(thief.stub.FetchExtents(disk, timeout=10)),
            lambda: thief.stub.OpenSegmentKeys(keys, timeout=10),
            lambda: thief.stub.RenewTicket(disk, timeout=10),
        ):
            with pytest.raises(grpc.RpcError) as caught:
                call()
            assert error_of_call(caught.value).code == "lease_expired"
        thief.finish(attempt, Outcome.DONE)
        thief.say(
            commit_request=session_pb2.CommitRequest(
                attempt=attempt_to_message(attempt), manifest_digest=b"mine"
            )
        )
        refusal = thief.expect("commit_refusal").commit_refusal
        assert refusal.error.code == "lease_expired"
        assert thief.heartbeat() == {}
        assert (handler.results, handler.grants) == ([], [])


def test_nobody_is_served_when_the_lease_is_over(
    controller: ControllerRig, enrolled: AgentRig
) -> None:
    handler, attempt = RecordingHandler(), new_attempt()
    with driven(controller, enrolled) as agent:
        agent.hello()
        with started(controller, enrolled, attempt, handler):
            agent.accept()
        assert handler.was_lost.wait(20)
        disk = session_pb2.JobDisk(attempt=attempt_to_message(attempt), device_key=2000)
        with pytest.raises(grpc.RpcError) as caught:
            agent.stub.RenewTicket(disk, timeout=10)
        assert error_of_call(caught.value).code == "lease_expired"
        agent.say(
            commit_request=session_pb2.CommitRequest(
                attempt=attempt_to_message(attempt), manifest_digest=b"late"
            )
        )
        assert agent.expect("commit_refusal").commit_refusal.error.code == "lease_expired"
    assert (handler.losses, handler.grants) == (1, [])


def test_an_attempt_is_lost_although_looking_fails_once_and_no_thread_can_be_started(
    controller: ControllerRig, enrolled: AgentRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    handler, attempt = RecordingHandler(), new_attempt()
    failures = iter([ZeroDivisionError("a bug")])
    with driven(controller, enrolled) as agent:
        agent.hello()
        with started(controller, enrolled, attempt, handler):
            agent.accept()
        desk = controller.sessions.desk
        look = desk.lose_expired

        def looked() -> None:
            for failure in failures:
                raise failure
            look()

        def no_thread(*_: object) -> None:
            raise RuntimeError("can't start new thread")

        monkeypatch.setattr(desk, "lose_expired", looked)
        monkeypatch.setattr(desk, "handled", no_thread)
        assert handler.was_lost.wait(20)
    assert handler.losses == 1


def test_nobody_is_served_between_the_leases_end_and_the_attempts(tmp_path: Path) -> None:
    timing = replace(FAST, silence_heartbeats=200.0, job_lease=0.5, lost_after_lease=60.0)
    with controller_rig(tmp_path / "controller", timing=timing) as controller:
        enrolled = AgentRig(controller, tmp_path / "agent", done_at_once)
        handler, attempt = RecordingHandler(), new_attempt()
        disk = session_pb2.JobDisk(attempt=attempt_to_message(attempt), device_key=2000)
        with driven(controller, enrolled) as agent:
            agent.hello()
            with started(controller, enrolled, attempt, handler):
                agent.accept()
            threading.Event().wait(0.6)
            with pytest.raises(grpc.RpcError) as caught:
                agent.stub.RenewTicket(disk, timeout=10)
            assert error_of_call(caught.value).code == "lease_expired"
            agent.heartbeat()
            agent.stub.RenewTicket(disk, timeout=10)
        assert handler.losses == 0


@pytest.mark.parametrize(
    "nonsense",
    [
        {"job_state": {"attempt": {"job_id": "../../etc"}}},
        {"job_finished": {"attempt": {"job_id": "0" * 26}, "result": {"outcome": "splendid"}}},
    ],
)
def test_a_message_that_cannot_be_right_ends_the_session(
    controller: ControllerRig, enrolled: AgentRig, nonsense: dict[str, object]
) -> None:
    with driven(controller, enrolled) as agent:
        agent.hello()
        agent.say(**nonsense)
        assert agent.expect("goodbye").goodbye.error.code == "usage"
        assert agent.ends_with().code == "usage"
    patience(lambda: not controller.sessions.connected())


def test_an_agent_that_asks_too_much_at_once_is_cut_off(
    controller: ControllerRig, enrolled: AgentRig
) -> None:
    handler = RecordingHandler(hold_grant=threading.Event())
    attempt = new_attempt()
    with driven(controller, enrolled) as agent:
        agent.hello()
        with started(controller, enrolled, attempt, handler):
            agent.accept()
        for _ in range(300):
            agent.say(
                commit_request=session_pb2.CommitRequest(
                    attempt=attempt_to_message(attempt), manifest_digest=b"d"
                )
            )
        assert "too much" in agent.expect("goodbye").goodbye.error.message
    assert handler.hold_grant is not None
    handler.hold_grant.set()


def test_a_revoked_agent_is_cut_off_at_once_and_stays_out(
    controller: ControllerRig, enrolled: AgentRig
) -> None:
    with driven(controller, enrolled) as agent:
        agent.hello()
        began = time.monotonic()
        controller.administration.revoke(enrolled.agent_id)
        assert agent.expect("goodbye").goodbye.error.code == "authentication_failed"
        assert agent.ends_with().code == "authentication_failed"
        assert time.monotonic() - began < 5
        disk = session_pb2.JobDisk(attempt=attempt_to_message(new_attempt()), device_key=2000)
        with pytest.raises(grpc.RpcError) as caught:
            agent.stub.RenewTicket(
                disk, timeout=10
            )  # the connection still stands; the call does not
        assert error_of_call(caught.value).code == "authentication_failed"
    with driven(controller, enrolled) as agent:
        agent.say(hello=session_pb2.Hello(features=["image-1"], role="proxy"))
        assert agent.ends_with().code == "authentication_failed"
    assert controller.sessions.connected() == []


def test_no_attempt_is_started_twice(controller: ControllerRig, enrolled: AgentRig) -> None:
    attempt = new_attempt()
    with driven(controller, enrolled) as agent:
        agent.hello()
        with started(controller, enrolled, attempt, RecordingHandler()):
            agent.accept()
        for number in (1, 2):
            again = new_attempt(number, attempt.job_id)
            with pytest.raises(Refused, match="has not ended"):
                controller.sessions.start(
                    enrolled.agent_id, again, check_spec(), RecordingHandler()
                )


def test_an_agent_that_can_go_slower_is_told_its_rates_and_again_after_a_reconnect(
    controller: ControllerRig, enrolled: AgentRig
) -> None:
    attempt, handler = new_attempt(), RecordingHandler()
    with driven(controller, enrolled) as driver:
        welcome = driver.hello(features=["image-1", "rate-1", "unheard-of"])
        assert list(welcome.features) == ["image-1", "rate-1"]
        with started(controller, enrolled, attempt, handler):
            assert driver.accept() == attempt
        assert [agent.can_be_slowed for agent in controller.sessions.connected()] == [True]
        assert controller.sessions.limit(attempt, {2000: 5_000_000_000, 2001: 7})
        rate = driver.expect("job_rate").job_rate
        assert attempt_from_message(rate.attempt) == attempt
        assert {each.device_key: each.bytes_per_second for each in rate.disks} == {
            2000: 5_000_000_000,
            2001: 7,
        }
    with driven(controller, enrolled) as driver:
        running = session_pb2.RunningJob(
            attempt=attempt_to_message(attempt), state=session_pb2.AGENT_JOB_STATE_RUNNING
        )
        driver.hello(features=["image-1", "rate-1"], running=[running])
        assert len(driver.expect("job_rate").job_rate.disks) == 2
        assert controller.sessions.limit(attempt, {})
        assert len(driver.expect("job_rate").job_rate.disks) == 0
        assert not controller.sessions.limit(new_attempt(), {2000: 1})


def test_an_older_agent_is_known_as_one_that_cannot_be_slowed(
    controller: ControllerRig, enrolled: AgentRig
) -> None:
    with driven(controller, enrolled) as driver:
        assert list(driver.hello().features) == ["image-1"]
        assert [agent.can_be_slowed for agent in controller.sessions.connected()] == [False]
