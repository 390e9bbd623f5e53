"""How long the controller takes to answer heartbeats is told to whoever wants to know."""

from __future__ import annotations

import queue
from collections.abc import Mapping

from holdfast_agent.session import AgentTiming, _Talk
from holdfast_agent.session_messages import FEATURES, heartbeat_message
from holdfast_common.clock import SystemClock
from holdfast_common.job_spec import Attempt
from holdfast_common.wire import session_pb2


class StillClock(SystemClock):
    seconds = 100.0

    def monotonic_seconds(self) -> float:
        return self.seconds


class IdleRunner:
    """A runner without jobs."""

    def renew_leases(self, ends_at: Mapping[Attempt, float]) -> None:
        assert not ends_at

    def results(self) -> list[object]:
        return []

    pending_commits = results


def test_each_answer_tells_how_long_its_own_heartbeat_waited() -> None:
    clock, told = StillClock(), list[float]()
    talk = _Talk(
        runner=IdleRunner(),  # type: ignore[arg-type]  # of a runner this is all that is asked
        posted=queue.Queue(),
        clock=clock,
        timing=AgentTiming(poll=0.01),
        answered=told.append,
    )
    said = talk.messages(session_pb2.FromAgent(hello=session_pb2.Hello()))
    assert next(said).HasField("hello")
    talk.welcomed(
        session_pb2.Welcome(features=sorted(FEATURES), heartbeat_ms=1000, job_lease_ms=4000)
    )
    assert next(said) == heartbeat_message(1)
    clock.seconds += 1.0
    assert next(said) == heartbeat_message(2)
    clock.seconds += 0.25
    talk.acknowledged(session_pb2.HeartbeatAck(number=1))
    talk.acknowledged(session_pb2.HeartbeatAck(number=2))
    talk.acknowledged(session_pb2.HeartbeatAck(number=2))  # the answer to nothing
    assert told == [1.25, 0.25]
