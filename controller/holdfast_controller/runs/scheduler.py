"""Looks every few seconds which policies are due, and keeps gates: windows, and proxies that are away."""

from __future__ import annotations

import logging
from datetime import datetime, timedelta
from typing import Final

from holdfast_common.errors import HoldfastError, Interrupted, WindowClosed
from holdfast_controller.decide.due_policies import looked_at
from holdfast_controller.decide.load_limits import LoadKey, LoadKind
from holdfast_controller.decide.windows import current_opening, next_opening
from holdfast_controller.runs.engine import Engine
from holdfast_controller.runs.loads import agent_gate, window_gate
from holdfast_controller.runs.pausing import is_paused, keep_paused
from holdfast_controller.runs.policy_runs import PolicyRuns
from holdfast_controller.runs.world import World
from holdfast_controller.store.policies import StoredPolicy

log = logging.getLogger(__name__)

LOOK_SECONDS: Final = 5.0
GONE_AFTER: Final = timedelta(minutes=10)  # a proxy that starts anew is back before
PULSE: Final = "scheduler"
PULSE_SECONDS_MAX: Final = 900.0  # a look reads inventories, and begins a job for each VM


class Scheduler:
    """A thread of its own, until the controller stops."""

    def __init__(self, world: World, engine: Engine) -> None:
        self._world = world
        self._engine = engine
        self.runs = PolicyRuns(world, engine)
        self._gates: dict[LoadKey, str] = {}
        self._away: dict[str, datetime] = {}  # proxies, and since when

    def run(self) -> None:
        """Look, until the controller stops."""
        self._world.pulses.expect(PULSE, within_seconds=PULSE_SECONDS_MAX)
        while not self._world.stopping.wait(LOOK_SECONDS):
            self._world.pulses.beat(PULSE)
            try:
                self.look(self._world.clock.now())
            except HoldfastError as error:
                log.warning("policies could not be looked at", extra={"error": error.line()})
            except Exception:
                # A bug in one look must not end all backups for ever: the next one tries again.
                log.exception("policies could not be looked at")
        self._world.pulses.end(PULSE)

    def look(self, now: datetime) -> None:
        """Once. Each policy for itself: what is wrong with one holds no other up. Raises: StoreFailed, Locked."""
        self._keep_from_who_is_away(now)
        keep_paused(self._world, self._engine)
        policies = self._world.policies.policies()
        self._let_go_of_deleted(policies)
        for stored in sorted(policies, key=lambda each: looked_at(each.policy)):
            try:
                self._look_at(stored, now)
            except HoldfastError as error:
                log.warning(
                    "a policy could not be looked at",
                    extra={"policy": stored.policy.name, "error": error.line()},
                )
            except Exception:
                # A bug that one policy meets must not keep those after it from ever running.
                log.exception(
                    "a policy could not be looked at because of a bug",
                    extra={"policy": stored.policy.name},
                )

    def _keep_from_who_is_away(self, now: datetime) -> None:
        """No job is given to a proxy that is away: it would go to another one, beyond what that may carry.

        What only such proxies could do is planned anew when they do not come back.
        """
        connected = {agent.agent_id for agent in self._world.link.connected()}
        away = {
            agent.agent_id: agent.host_name
            for agent in self._world.agents.all()
            if agent.agent_id not in connected
        }
        if away.keys() != self._away.keys():
            gates = [agent_gate(agent_id, name) for agent_id, name in away.items()]
            self._engine.dispatcher.shut_only(LoadKind.AGENT, gates)
        self._away = {agent_id: self._away.get(agent_id, now) for agent_id in away}
        gone = {agent_id for agent_id, since in self._away.items() if now - since >= GONE_AFTER}
        found = self._engine.dispatcher.waiting_only_for(gone) if gone else []
        if found:
            advice = "see `holdfast agent list`; a policy's run is planned anew with the proxies that are there"
            why = Interrupted("the proxies that could do it went away", advice=advice)
            self._engine.end_waiting(found, why)

    def _look_at(self, stored: StoredPolicy, now: datetime) -> None:
        self._keep_window(stored, now)
        if is_paused(self._world):
            return
        self.runs.begin_due(stored, now)
        self.runs.go_on(stored, now)

    def _keep_window(self, stored: StoredPolicy, now: datetime) -> None:
        """What is at work when it closes is stopped, and what waits ends."""
        gate = window_gate(stored.policy_id, stored.policy.name)
        self._gates[gate] = stored.policy.name
        windows = stored.policy.windows
        if current_opening(windows, now) is not None:
            self._engine.dispatcher.open(gate)
            return
        self._engine.dispatcher.shut(gate)
        opening = next_opening(windows, now).opens_at
        closed = WindowClosed(
            "the policy's window closed before the backup was done",
            policy=stored.policy.name,
            opens_again="" if opening is None else opening.isoformat(timespec="minutes"),
        )
        self._engine.stop_all(gate, closed)

    def _let_go_of_deleted(self, policies: list[StoredPolicy]) -> None:
        kept = {window_gate(stored.policy_id) for stored in policies}
        for gate in [gate for gate in self._gates if gate not in kept]:
            name = self._gates.pop(gate)
            self._engine.stop_waiting(
                gate, Interrupted("the policy was deleted, or cannot be read", policy=name)
            )
            self._engine.dispatcher.open(gate)
