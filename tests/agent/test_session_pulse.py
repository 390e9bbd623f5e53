"""A session that stands still is missed by the watchdog; one that dials in vain is not."""

from __future__ import annotations

import threading

from holdfast_agent.controller_calls import ChannelCalls
from holdfast_agent.session import PULSE, PULSE_SECONDS_MAX, AgentSession, AgentTiming, Dialled
from holdfast_common.clock import SystemClock
from holdfast_common.errors import ControllerUnreachable
from holdfast_common.pulses import Pulses

BRIEFLY = AgentTiming(reconnect_min=0.001, reconnect_max=0.002)


class LaterClock(SystemClock):
    later = 0.0

    def monotonic_seconds(self) -> float:
        return super().monotonic_seconds() + self.later


class Dialling:
    """A session whose dialling a test holds up."""

    def __init__(self) -> None:
        self.clock = LaterClock()
        self.pulses = Pulses(self.clock)
        self.stop = threading.Event()
        self.hold = threading.Event()
        self.let_go = threading.Event()
        self.holding = threading.Event()
        self.dialled = threading.Semaphore(0)
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Dialling:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.let_go.set()
        self._thread.join(30)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        session = AgentSession(
            dialled=self._dial,
            calls=ChannelCalls(self.stop),
            clock=self.clock,
            timing=BRIEFLY,
            pulses=self.pulses,
        )
        session.run(None, self.stop)  # type: ignore[arg-type]  # it never comes to a job

    def _dial(self) -> Dialled:
        self.dialled.release()
        if self.hold.is_set():
            self.holding.set()
            self.let_go.wait(30)
        raise ControllerUnreachable("nobody answers")


def test_a_controller_that_is_away_is_no_reason_to_start_the_agent_anew() -> None:
    with Dialling() as agent:
        assert agent.dialled.acquire(timeout=30)
        agent.clock.later += PULSE_SECONDS_MAX + 1
        for _ in range(3):  # what was under way then, and rounds that began later
            assert agent.dialled.acquire(timeout=30)
        assert agent.pulses.silent() == []


def test_a_session_that_hangs_is_missed_and_one_that_ended_is_not() -> None:
    with Dialling() as agent:
        agent.hold.set()
        assert agent.holding.wait(30)
        assert agent.pulses.silent() == []
        agent.clock.later += PULSE_SECONDS_MAX + 1
        assert agent.pulses.silent() == [PULSE]
    assert agent.pulses.silent() == []
