"""Many agents in one process, each with its own certificate, connection and stream: the product's session.

Run by `benchmarks.controller_load`: orders come as lines of JSON, each is answered with one.
Times are seconds of this machine's monotonic clock, which is the same in all its processes.
"""

from __future__ import annotations

import json
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from holdfast_agent.capabilities import reach_of
from holdfast_agent.certificates import load_identity
from holdfast_agent.configuration import (
    AgentConfiguration,
    HotAddConfiguration,
    RestoreConfiguration,
    read_configuration,
)
from holdfast_agent.controller_calls import ChannelCalls
from holdfast_agent.enrolment import Enrolment, enrol
from holdfast_agent.job_runner import JobRunner, PipelineTable
from holdfast_agent.ledger import AgentLedger
from holdfast_agent.running_attempt import Surroundings
from holdfast_agent.session import AgentSession, AgentTiming, Dialled
from holdfast_common.clock import SystemClock
from holdfast_common.places import Places, find_places
from holdfast_common.trust.join_token import parse_join_token
from holdfast_common.wire import session_pb2_grpc

# An agent looks twice a second whether it is to stop; a thousand on one machine would keep it busy with that.
TIMING = AgentTiming(poll=2.5)
STACK_BYTES = 256 * 1024  # of each of some thousand threads
REPOSITORY = "01ARZ3NDEKTSV4RRFFQ69G5FAV"


@dataclass
class Heard:
    """What the agents of this process noted since somebody last asked. Appending is safe for threads."""

    answers: list[float] = field(default_factory=list)
    welcomes: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)


class NotedCalls(ChannelCalls):
    """The product's, noting when its session begins and ends."""

    def __init__(self, stop: threading.Event, heard: Heard) -> None:
        super().__init__(stop)
        self._heard = heard
        self._was_connected = False

    def connected(self, stub: session_pb2_grpc.AgentsStub | None) -> None:
        super().connected(stub)
        now = SystemClock().monotonic_seconds()
        if stub is not None:
            self._heard.welcomes.append(now)
        elif self._was_connected:
            self._heard.losses.append(now)
        self._was_connected = stub is not None


class Agent:
    """One agent, as `holdfast-agent run` puts it together, but for what watches over files and certificates."""

    def __init__(self, places: Places, heard: Heard, stop: threading.Event) -> None:
        identity = load_identity(places.agent_state)
        configuration: AgentConfiguration = read_configuration(places.agent_configuration)
        clock = SystemClock()
        calls = NotedCalls(stop, heard)
        reach = reach_of(configuration)
        self.session = AgentSession(
            dialled=lambda: Dialled(
                address=configuration.controller, identity=identity, reach=reach
            ),
            calls=calls,
            clock=clock,
            timing=TIMING,
            answered=lambda seconds: heard.answers.append(seconds),  # noqa: PLW0108 - the list of that moment
        )
        runner = JobRunner(
            surroundings=Surroundings(
                agent_id=identity.agent_id,
                signing_key=identity.signing_key,
                calls=calls,
                post=self.session.post,
                clock=clock,
            ),
            configuration=lambda: configuration,
            ledger=AgentLedger(places.agent_state / "attempts"),
            pipelines=_no_pipelines,
        )
        self.thread = threading.Thread(target=self.session.run, args=(runner, stop), daemon=True)


class AgentHost:
    """All agents of this process."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stop = threading.Event()
        self._heard = Heard()
        self._places: list[Places] = []
        self._agents: list[Agent] = []

    def enrol(self, tokens: dict[str, str], controller: str) -> dict[str, Any]:
        """Join with one token for each host name, as `holdfast-agent enrol` does."""
        for host_name, token in tokens.items():
            places = find_places({"HOLDFAST_HOME": str(self._folder / host_name)})
            enrol(
                places,
                Enrolment(
                    token=parse_join_token(token),
                    controller=controller,
                    role="proxy",
                    host_name=host_name,
                    repositories={REPOSITORY: "/srv/repository"},
                    datastores={},
                    hot_add=HotAddConfiguration(),
                    restore=RestoreConfiguration(folders=("/srv/restores",)),
                ),
            )
            self._places.append(places)
        return {"enrolled": len(self._places)}

    def connect(self) -> dict[str, Any]:
        """All at once."""
        self._agents = [Agent(places, self._heard, self._stop) for places in self._places]
        for agent in self._agents:
            agent.thread.start()
        return {}

    def report(self) -> dict[str, Any]:
        """What was noted since the last report, and how many are connected."""
        answers, self._heard.answers = self._heard.answers, []
        welcomes, self._heard.welcomes = self._heard.welcomes, []
        losses, self._heard.losses = self._heard.losses, []
        connected = sum(agent.session.connected.is_set() for agent in self._agents)
        return {
            "connected": connected,
            "answers": answers,
            "welcomes": welcomes,
            "losses": losses,
        }

    def end(self) -> dict[str, Any]:
        """Close all sessions."""
        self._stop.set()
        for agent in self._agents:
            agent.thread.join(10)
        return {}


def _no_pipelines() -> PipelineTable:
    raise AssertionError("no agent of this benchmark gets a job")


def main() -> None:
    """Until standard input ends."""
    threading.stack_size(STACK_BYTES)
    host = AgentHost(Path(sys.argv[1]))
    for line in sys.stdin:
        order = json.loads(line)
        answer = getattr(host, order.pop("do"))(**order)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
