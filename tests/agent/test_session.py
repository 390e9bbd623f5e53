"""The agent's side of the protocol, by a controller that a test drives message by message."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from holdfast_agent.certificates import save_signing_key
from holdfast_agent.configuration import AgentConfiguration
from holdfast_agent.daemon import AgentDaemon, DaemonTiming
from holdfast_agent.enrolment import write_configuration
from holdfast_common.clock import SystemClock
from holdfast_common.identity import new_ulid
from holdfast_common.job_spec import Attempt, CheckRepository
from holdfast_common.places import find_places, private_folder
from holdfast_common.trust.authority import create_authority
from holdfast_common.trust.channels import server_credentials
from holdfast_common.trust.controller_trust import save_credentials
from holdfast_common.trust.peer import Role, Subject
from holdfast_common.wire import session_pb2, session_pb2_grpc
from holdfast_common.wire_codec.specs import job_spec_to_message, spec_digest
from holdfast_common.wire_codec.values import attempt_from_message, attempt_to_message
from support.session_rig import FAST_AGENT, GatedPipeline, check_spec, new_attempt, patience

# Nobody answers heartbeats here unless a test does, so silence alone must not end a session.
PATIENT = replace(
    FAST_AGENT, session=replace(FAST_AGENT.session, silence_heartbeats=1000.0), lease_wait=0.2
)


class Stream:
    """One session of the agent, in the test's hands."""

    def __init__(self, requests: Iterator[session_pb2.FromAgent]) -> None:
        self._requests = requests
        self.heard: queue.Queue[session_pb2.FromAgent] = queue.Queue()
        self.to_say: queue.Queue[session_pb2.ToAgent | None] = queue.Queue()
        self.over = threading.Event()
        threading.Thread(target=self._listen, daemon=True).start()

    def say(self, **message: object) -> None:
        self.to_say.put(session_pb2.ToAgent(**message))  # type: ignore[arg-type]  # one field of it

    def welcome(self, **fields: object) -> session_pb2.Hello:
        hello = self.expect("hello").hello
        usual: dict[str, object] = {
            "session_epoch": 1,
            "features": ["image-1"],
            "heartbeat_ms": 200,
            "job_lease_ms": 1000,
        }
        self.say(welcome=session_pb2.Welcome(**{**usual, **fields}))  # type: ignore[arg-type]  # a test's choice
        return hello

    def expect(self, kind: str) -> session_pb2.FromAgent:
        while True:
            message = self.heard.get(timeout=20)
            found = message.WhichOneof("message")
            if found == kind:
                return message
            assert found in {"heartbeat", "progress", "job_state"}, message

    def start(self, attempt: Attempt, *, lease_ms: int = 1000) -> None:
        spec = job_spec_to_message(check_spec())
        self.say(
            start_job=session_pb2.StartJob(
                attempt=attempt_to_message(attempt),
                spec=spec,
                spec_digest=spec_digest(spec),
                lease_ms=lease_ms,
            )
        )

    def answer_heartbeat(self, *attempts: Attempt, valid_ms: int = 1000) -> None:
        number = self.expect("heartbeat").heartbeat.number
        leases = [
            session_pb2.JobLease(attempt=attempt_to_message(attempt), valid_ms=valid_ms)
            for attempt in attempts
        ]
        self.say(heartbeat_ack=session_pb2.HeartbeatAck(number=number, leases=leases))

    def _listen(self) -> None:
        try:
            for message in self._requests:
                self.heard.put(message)
        except grpc.RpcError:
            pass
        self.over.set()
        self.to_say.put(None)


class DrivenController(session_pb2_grpc.AgentsServicer):
    """Hands every session of the agent to the test."""

    def __init__(self) -> None:
        self._streams: queue.Queue[Stream] = queue.Queue()

    def next_stream(self) -> Stream:
        return self._streams.get(timeout=20)

    def Session(  # noqa: N802 - gRPC's names
        self, requests: Iterator[session_pb2.FromAgent], _context: grpc.ServicerContext
    ) -> Iterator[session_pb2.ToAgent]:
        stream = Stream(requests)
        self._streams.put(stream)
        yield from iter(stream.to_say.get, None)

    FetchExtents = OpenSegmentKeys = RenewTicket = RenewCertificate = None  # type: ignore[assignment]  # nobody calls


class Scene:
    """A driven controller and a real agent that dials it."""

    def __init__(self, home: Path, *, timing: DaemonTiming = PATIENT) -> None:
        clock = SystemClock()
        authority = create_authority(now=clock.now())
        own = authority.issue_with_key(
            Subject(role=Role.CONTROLLER, name=new_ulid()), now=clock.now()
        )
        self.controller = DrivenController()
        self.server = grpc.server(ThreadPoolExecutor(8))
        session_pb2_grpc.add_AgentsServicer_to_server(self.controller, self.server)
        port = self.server.add_secure_port(
            "127.0.0.1:0", server_credentials(lambda: own, client_certificates=True)
        )
        self.server.start()
        places = find_places({"HOLDFAST_HOME": str(home)})
        private_folder(places.agent_state)
        identity = authority.issue_with_key(
            Subject(role=Role.PROXY, name=new_ulid()), now=clock.now()
        )
        save_credentials(places.agent_state / "identity.pem", identity)
        save_signing_key(places.agent_state, Ed25519PrivateKey.generate())
        write_configuration(places, AgentConfiguration(controller=f"127.0.0.1:{port}"))
        self.pipeline = GatedPipeline(commit=b"digest")
        self.stop = threading.Event()
        self.daemon = AgentDaemon(
            places,
            pipelines=lambda: {CheckRepository: self.pipeline},
            stop=self.stop,
            timing=timing,
        )
        self.thread = threading.Thread(target=self.daemon.run, daemon=True)
        self.thread.start()

    def close(self) -> None:
        self.pipeline.gate.set()
        self.stop.set()
        self.server.stop(0)
        self.thread.join(40)
        assert not self.thread.is_alive()


@contextmanager
def scene(home: Path, *, timing: DaemonTiming = PATIENT) -> Iterator[Scene]:
    made = Scene(home, timing=timing)
    try:
        yield made
    finally:
        made.close()


def error_code(finished: session_pb2.FromAgent) -> str:
    return finished.job_finished.result.error.code


def test_the_first_word_after_the_welcome_is_a_heartbeat(tmp_path: Path) -> None:
    with scene(tmp_path) as made:
        stream = made.controller.next_stream()
        hello = stream.welcome()
        assert (hello.role, list(hello.features)) == ("proxy", ["image-1", "rate-1"])
        assert list(hello.capabilities.transports) == ["nfc"]
        assert stream.heard.get(timeout=20).heartbeat.number == 1


def test_a_job_that_was_held_up_on_its_way_has_no_lease_left(tmp_path: Path) -> None:
    with scene(tmp_path) as made:
        stream = made.controller.next_stream()
        stream.welcome()
        stream.answer_heartbeat()  # the last answer before the network stood still
        threading.Event().wait(1.2)
        attempt = new_attempt()
        stream.start(attempt, lease_ms=1000)
        finished = stream.expect("job_finished")
        assert error_code(finished) == "lease_expired"
        assert made.pipeline.runs == 0


def test_a_lease_counts_from_the_sending_of_its_heartbeat(tmp_path: Path) -> None:
    with scene(tmp_path) as made:
        stream = made.controller.next_stream()
        stream.welcome()
        attempt = new_attempt()
        stream.start(attempt, lease_ms=5000)
        assert made.pipeline.began.wait(20)
        first = stream.expect("heartbeat").heartbeat.number
        threading.Event().wait(1.0)
        # Valid for 500 ms from a moment a second ago: it takes away the lease that was there.
        lease = session_pb2.JobLease(attempt=attempt_to_message(attempt), valid_ms=500)
        stream.say(heartbeat_ack=session_pb2.HeartbeatAck(number=first, leases=[lease]))
        turns = made.pipeline.turns
        finished = stream.expect("job_finished")
        assert error_code(finished) == "lease_expired"
        assert made.pipeline.turns - turns < 8  # it turns 25 times in half a second


def test_an_agent_that_gets_no_answers_dials_again(tmp_path: Path) -> None:
    with scene(tmp_path, timing=FAST_AGENT) as made:
        stream = made.controller.next_stream()
        stream.welcome()
        assert stream.over.wait(20)  # no heartbeat was answered
        made.controller.next_stream().welcome()


def test_an_agent_that_is_not_welcomed_dials_again(tmp_path: Path) -> None:
    hasty = replace(FAST_AGENT, session=replace(FAST_AGENT.session, welcome=0.5))
    with scene(tmp_path, timing=hasty) as made:
        stream = made.controller.next_stream()
        stream.expect("hello")
        assert stream.over.wait(20)
        made.controller.next_stream().welcome()


@pytest.mark.parametrize("fields", [{"features": []}, {"heartbeat_ms": 0}, {"job_lease_ms": 0}])
def test_a_welcome_that_does_not_fit_ends_the_session(
    tmp_path: Path, fields: dict[str, object]
) -> None:
    with scene(tmp_path) as made:
        stream = made.controller.next_stream()
        stream.welcome(**fields)
        assert stream.over.wait(20)
        assert not made.daemon.session.connected.is_set()
        made.controller.next_stream().welcome()


def test_running_jobs_and_results_are_named_in_the_next_hello(tmp_path: Path) -> None:
    running, ended = new_attempt(), new_attempt()
    with scene(tmp_path) as made:
        stream = made.controller.next_stream()
        stream.welcome()
        stream.start(ended, lease_ms=60_000)
        assert made.pipeline.began.wait(20)
        stream.say(cancel_job=session_pb2.CancelJob(attempt=attempt_to_message(ended)))
        stream.expect("job_finished")
        made.pipeline.began.clear()
        stream.start(running, lease_ms=60_000)
        assert made.pipeline.began.wait(20)
        stream.to_say.put(None)
        again = made.controller.next_stream()
        verdict = session_pb2.RunningVerdict(
            attempt=attempt_to_message(running), verdict=session_pb2.VERDICT_ABORT
        )
        hello = again.welcome(running=[verdict])
        assert [attempt_from_message(found.attempt) for found in hello.running] == [running]
        assert [found.state for found in hello.running] == [session_pb2.AGENT_JOB_STATE_RUNNING]
        assert [attempt_from_message(found) for found in hello.results] == [ended]
        results: dict[Attempt, str] = {}
        while len(results) < 2:
            message = again.expect("job_finished")
            results[attempt_from_message(message.job_finished.attempt)] = error_code(message)
        assert results == {ended: "cancelled", running: "lease_expired"}
        for attempt in results:
            again.say(result_ack=session_pb2.ResultAck(attempt=attempt_to_message(attempt)))
        patience(lambda: not made.daemon.runner.results())


def test_a_grant_twice_or_for_nobody_does_no_harm(tmp_path: Path) -> None:
    attempt = new_attempt()
    with scene(tmp_path) as made:
        stream = made.controller.next_stream()
        stream.welcome()
        stray = session_pb2.CommitGrant(
            attempt=attempt_to_message(new_attempt()), manifest_digest=b"digest"
        )
        early = session_pb2.CommitGrant(
            attempt=attempt_to_message(attempt), manifest_digest=b"digest"
        )
        stream.say(commit_grant=stray)
        stream.say(commit_grant=early)
        stream.start(attempt, lease_ms=60_000)
        assert made.pipeline.began.wait(20)
        made.pipeline.gate.set()
        asked = stream.expect("commit_request").commit_request
        assert asked.manifest_digest == b"digest"
        grant = session_pb2.CommitGrant(
            attempt=asked.attempt,
            manifest_digest=b"digest",
            controller_epoch=session_pb2.ControllerEpoch(epoch=3, signature=b"signed"),
        )
        stream.say(commit_grant=grant)
        stream.say(commit_grant=grant)
        finished = stream.expect("job_finished").job_finished
        assert (finished.result.outcome, finished.result.record) == ("done", b"signed")


def test_a_job_that_cannot_be_read_is_refused_and_the_session_lives(tmp_path: Path) -> None:
    with scene(tmp_path) as made:
        stream = made.controller.next_stream()
        stream.welcome()
        unknown = session_pb2.StartJob(
            attempt=attempt_to_message(new_attempt()), spec_digest=b"d", lease_ms=1000
        )
        unknown.spec.run_id = new_ulid()
        stream.say(start_job=unknown)
        state = stream.expect("job_state").job_state
        assert state.state == session_pb2.AGENT_JOB_STATE_REFUSED
        assert state.error.code == "usage"
        stream.answer_heartbeat()


def test_attempts_with_impossible_ids_end_the_session_and_touch_nothing(tmp_path: Path) -> None:
    with scene(tmp_path) as made:
        stream = made.controller.next_stream()
        stream.welcome()
        evil = session_pb2.Attempt(job_id="../../../etc/passwd", attempt=1)
        stream.say(result_ack=session_pb2.ResultAck(attempt=evil))
        assert stream.over.wait(20)
        made.controller.next_stream().welcome()
        assert made.thread.is_alive()
