"""The copies that agents are at work on, and which of their disks are slowed: between `latency_watch` and the agents.

A copy says here what it reads from. Whatever its rates become is told its agent; how long it was slowed, and by what, is
handed to whoever began it when it ends.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from holdfast_common.errors import HoldfastError
from holdfast_common.identity import AgentId, JobId
from holdfast_common.job_spec import Attempt
from holdfast_controller.decide.load_limits import LoadKey
from holdfast_controller.runs.agent_link import AgentLink

log = logging.getLogger(__name__)

Gates = Mapping[
    int, Collection[LoadKey]
]  # device key: the gates of the datastores that it is read from
OnSlowed = Callable[[LoadKey, float], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Slowdown:
    """``seconds``: how long a copy was slowed by one thing until now, and to which rate."""

    load: LoadKey
    bytes_per_second: int
    seconds: float


@dataclass(slots=True, kw_only=True)
class _Stream:
    """``since``: since when it is slowed by what; ``told``: the rates that its agent took."""

    attempt: Attempt
    agent_id: AgentId
    gates: Gates
    told: Mapping[int, int] = field(default_factory=dict)
    since: dict[LoadKey, float] = field(default_factory=dict)
    seconds: dict[LoadKey, float] = field(default_factory=dict)

    def rates(self, of_gates: Mapping[LoadKey, int]) -> dict[int, int]:
        """The lowest of each disk; a disk without one is free."""
        found = {}
        for device_key, gates in self.gates.items():
            slow = [of_gates[gate] for gate in gates if gate in of_gates]
            if slow:
                found[device_key] = min(slow)
        return found

    def note(self, slowed_by: Collection[LoadKey], now: float) -> None:
        """By what it is slowed from now on."""
        for gate in [gate for gate in self.since if gate not in slowed_by]:
            self.seconds[gate] = self.seconds.get(gate, 0.0) + now - self.since.pop(gate)
        for gate in slowed_by:
            self.since.setdefault(gate, now)


class RunningStreams:
    """Thread-safe. No lock is held while an agent is told."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._streams: dict[JobId, _Stream] = {}
        self._rates: Mapping[LoadKey, int] = {}

    @contextmanager
    def running(
        self,
        attempt: Attempt,
        agent_id: AgentId,
        gates: Gates,
        *,
        now: Callable[[], float],
        slowed: OnSlowed,
    ) -> Iterator[None]:
        """A copy, until the block ends; then ``slowed`` hears what it was slowed by, and how many seconds.

        ``now``: seconds of a monotonic clock.
        """
        stream = _Stream(attempt=attempt, agent_id=agent_id, gates=gates)
        with self._lock:
            self._streams[attempt.job_id] = stream
        try:
            yield
        finally:
            with self._lock:
                self._streams.pop(attempt.job_id, None)
                stream.note((), now())
            for gate, seconds in stream.seconds.items():
                slowed(gate, seconds)

    def slow(self, link: AgentLink, rates: Mapping[LoadKey, int], now: float) -> None:
        """Each stream reads from these no faster than that (bytes per second), and freely from all others."""
        with self._lock:
            self._rates = dict(rates)
            streams = list(self._streams.values())
        able = {agent.agent_id for agent in link.connected() if agent.can_be_slowed}
        for stream in streams:
            wanted = stream.rates(rates) if stream.agent_id in able else {}
            if wanted != stream.told and _told(link, stream.attempt, wanted):
                stream.told = wanted
            slowed_by = {
                gate
                for key in stream.told
                for gate in stream.gates[key]
                if rates.get(gate) == stream.told[key]
            }
            with self._lock:
                stream.note(slowed_by, now)

    def slowdowns(self, job_id: JobId, now: float) -> list[Slowdown]:
        """What slows a job's copy now."""
        with self._lock:
            stream = self._streams.get(job_id)
            if stream is None:
                return []
            return [
                Slowdown(
                    load=gate,
                    bytes_per_second=self._rates.get(gate, 0),
                    seconds=stream.seconds.get(gate, 0.0) + now - since,
                )
                for gate, since in sorted(stream.since.items(), key=lambda item: item[0].key)
            ]


def _told(link: AgentLink, attempt: Attempt, rates: Mapping[int, int]) -> bool:
    try:
        return link.limit(attempt, rates)
    except HoldfastError as error:  # the next look tells it again
        log.info("an agent could not be told its rate", extra={"error": error.line()})
        return False
