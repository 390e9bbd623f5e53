"""One seed, from its scenario to its end: events in virtual time, faults that stop, and then everything must be in order.

report = simulate(scenario_of(4711))      # raises Violation, with the seed, when it is not
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from holdfast_common.errors import HoldfastError
from holdfast_common.job_spec import TransportKind
from holdfast_controller.decide.policy import Policy
from holdfast_controller.runs.requests import BackupRequest
from simulation import deeds, invariants
from simulation.deeds_of_keepers import forget_by_hand, prune
from simulation.deeds_of_operators import is_as_after_faults, look, resume
from simulation.keeping_watch import KeepingWatch
from simulation.product_in_virtual_time import product_in_virtual_time
from simulation.scenario import Scenario
from simulation.virtual_agents import VirtualAgents
from simulation.virtual_controller import (
    GRACE_SECONDS,
    KEEPING_CYCLE_SECONDS,
    KEEPING_LOOK_SECONDS,
    VirtualController,
)
from simulation.virtual_database import is_intended, new_database
from simulation.virtual_time import Kernel, Life, Violation
from simulation.virtual_vms import Misbehaviour, VirtualVm
from simulation.virtual_vsphere import VirtualVsphere

SETTLES_SECONDS_MAX: Final = 3600.0  # after faults stop everything ends within it
LOOK_SECONDS: Final = 5.0
CYCLES_MAX: Final = 2
CYCLES_BEGIN_SECONDS: Final = (
    2 * KEEPING_LOOK_SECONDS + 5.0
)  # a look finds what is due, then it works
RESTART_SECONDS_MAX: Final = 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a seed came to. ``trace``: a digest of everything that happened, in order."""

    seed: int
    trace: str
    transitions: Counter[str]
    faults: Counter[str]
    restores: int
    steps: int
    seconds: float


class Simulation:
    """The parts of one seed."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        seed = scenario.seed
        self.kernel = Kernel(seed)
        self.connection = new_database()
        self.model = VirtualVsphere(
            self.kernel,
            seed,
            lambda kind, fact, value: is_intended(self.connection, kind, fact, value),
        )
        self.model.wrong.lies = scenario.lies
        self.agents = VirtualAgents(self.kernel, self.model, seed)
        self.controller = VirtualController(
            self.kernel,
            self.model,
            self.agents,
            self.connection,
            audit_share=scenario.audit_share,
            keeps=scenario.keep_last > 0,
            streams_max=scenario.streams_max,
        )
        storage = self.agents.repository.storage
        storage.tells_time = scenario.storage_tells_time
        self.watch = storage.watcher = KeepingWatch(
            self.kernel,
            self.connection,
            self.agents.repository,
            self._policies,
            grace_seconds=GRACE_SECONDS,
        )
        self.faults: Counter[str] = Counter()
        self.vms: list[VirtualVm] = []
        self.systemd = Life("systemd")
        self.restarts = True
        self.faults_go_on = True

    def run(self) -> Report:
        """Raises: Violation, and whatever a bug raises."""
        storage = self.agents.repository.storage
        with product_in_virtual_time(self.kernel, self.model, storage, self.scenario.seed):
            try:
                self._begin()
                for event in self.scenario.events:
                    self.kernel.sleep(max(0.0, event.at - self.kernel.now))
                    deeds.do(self, event)
                self._faults_stop()
                self._settle()
                self._back_up_everything()
                self._keep_everything()
                restores = invariants.check_at_rest(self)
            finally:
                self._end()
        return self._report(restores)

    def operator(self, name: str, work: deeds.Deed) -> None:
        """Something that an operator has the controller do, in a thread of its own, if it is there."""
        if not self.controller.is_up:
            return

        def ask() -> None:
            try:
                work()
            except HoldfastError as error:
                self.kernel.trace.append(
                    f"{self.kernel.now:.3f} {name}: {error.code}: {error.message}"
                )

        self.kernel.spawn(self.controller.life, name, ask)

    # -- inside --------------------------------------------------------------------------------------

    def _begin(self) -> None:
        scenario, model = self.scenario, self.model
        self.vms = [
            model.add_vm(f"vm{number + 1}", list(sizes))
            for number, sizes in enumerate(scenario.vm_sizes)
        ]
        kinds = (TransportKind.DIRECT, TransportKind.HOTADD)
        for number in range(scenario.proxies):
            proxy = model.add_proxy(f"proxy{number + 1}")
            offered = kinds if number == 0 and scenario.seed % 2 else kinds[1:]
            self.agents.run(self.agents.add(proxy, offered))
        self.controller.set_up()
        deeds.set_up(self)
        self.kernel.spawn(self.systemd, "systemd", self._supervise)

    def _supervise(self) -> None:
        while True:
            if self.controller.life.dead and self.restarts and not self.controller.life.tasks:
                self.controller.start()
            self.kernel.sleep(self.kernel.random.uniform(0.5, RESTART_SECONDS_MAX))

    def _faults_stop(self) -> None:
        self.faults_go_on = False
        lies = self.model.wrong.lies
        self.model.wrong = Misbehaviour(lies=lies)
        self.controller.wrong.before = self.controller.wrong.after = 0
        self.controller.life.crash_at = 0
        storage = self.agents.repository.storage
        storage.full, storage.failing = False, 0
        self.watch.dies_after = 0
        if self.scenario.keep_last:  # time synchronisation puts it right
            self.watch.clock_moved(-self.kernel.wall_offset, self.controller)
        if self.watch.clock_was_wrong:
            self.controller.stop()  # what it wrote by that clock must not count for ever
        self.agents.delays = 1.0
        for agent in self.agents.all:
            agent.away_until = -1.0
            agent.lost_messages = agent.repeated_messages = 0
            agent.life.crash_at = 0
            if agent.life.dead:
                self.agents.restart(agent)
        resume(self)

    def _settle(self) -> None:
        ends_at = self.kernel.now + SETTLES_SECONDS_MAX
        self.kernel.sleep(1.0)  # whatever was asked for last has begun
        while (left := invariants.unsettled(self)) != "":
            if self.kernel.now > ends_at:
                raise Violation(f"after {SETTLES_SECONDS_MAX:.0f} s without faults: {left}")
            look(self)
            if not is_as_after_faults(self):  # somebody was at it when faults stopped
                resume(self)
            self.kernel.sleep(LOOK_SECONDS)

    def _back_up_everything(self) -> None:
        """Nothing that happened may keep the next backup of a VM from being made, and from being right."""
        # what was found to be lying is read whole, and begins anew with the one after that
        for _ in range(2 if self.scenario.lies else 1):
            started: list[str] = []
            wanted = [vm.name for vm in self.vms if vm.moref in self.model.vms]
            if not wanted:
                return
            for vm in self.vms:
                for disk in vm.disks:
                    self.model.write(vm, disk, 1)

            def begin(names: list[str] = wanted, into: list[str] = started) -> None:
                engine = self.controller.engine
                assert engine is not None
                request = BackupRequest(selectors=tuple(names))
                into.extend(engine.start_backup(request, dry_run=False).job_ids)

            self.operator("the last backups", begin)
            self.kernel.sleep(1.0)
            self._settle()
            invariants.check_last_backups(self, started, wanted)

    def _keep_everything(self) -> None:
        """What can be forgotten is forgotten within two cycles, and what nothing needs is deleted two later."""
        for point_id in sorted(self.watch.by_hand):  # who was not told that it is done asks again
            forget_by_hand(self, point_id)
        if not self.scenario.keep_last:
            return
        if self.watch.clock_was_wrong:
            self._accept_clock()
        uuids = {vm.instance_uuid for vm in self.model.vms.values()}
        self._within_cycles(lambda: self.watch.forgettable(uuids), "is not forgotten")
        self._within_cycles(self.agents.repository.garbage, "is not deleted")

    def _accept_clock(self) -> None:
        """An operator who sees that the clock is right again says so, as the refusal of a prune asks him to."""
        ask = self.connection.execute
        rounds = "SELECT count(*) FROM prunes WHERE ended_at != '' AND problem = ''"
        (before,) = ask(rounds).fetchone()
        ends_at = self.kernel.now + SETTLES_SECONDS_MAX
        while ask(rounds).fetchone()[0] == before:
            if self.kernel.now > ends_at:
                raise Violation("no prune begins although the clock was accepted")
            prune(self, accept_clock=True)
            self.kernel.sleep(LOOK_SECONDS)

    def _within_cycles(self, left: Callable[[], list[str]], what: str) -> None:
        ends_at = self.kernel.now + CYCLES_MAX * KEEPING_CYCLE_SECONDS + CYCLES_BEGIN_SECONDS
        while found := left():
            if self.kernel.now > ends_at:
                raise Violation(f"after {CYCLES_MAX} cycles of keeping {what}: {found}")
            self.kernel.sleep(LOOK_SECONDS)
        self._settle()

    def _policies(self) -> list[Policy]:
        world = self.controller.world
        return [] if world is None else [each.policy for each in world.policies.policies()]

    def _end(self) -> None:
        self.restarts = False
        kernel = self.kernel
        lives = [self.systemd, self.controller.life, *(each.life for each in self.agents.all)]
        if kernel.failure is not None:
            return  # threads that wait are left: the run is over
        for life in lives:
            kernel.kill(life)
        while any(life.tasks for life in lives):
            kernel.sleep(0.0)

    def _report(self, restores: int) -> Report:
        self.faults.update(self.agents.counts)
        self.faults.update(self.watch.counts)
        self.faults.update(invariants.kept_for_reasons(self))
        self.faults.update({f"lie {each}": 1 for each in self.scenario.lies})
        digest = hashlib.sha256("\n".join(self.kernel.trace).encode())
        digest.update(invariants.story(self).encode())
        return Report(
            seed=self.scenario.seed,
            trace=digest.hexdigest(),
            transitions=invariants.transitions(self),
            faults=self.faults,
            restores=restores,
            steps=self.kernel.steps,
            seconds=self.kernel.now,
        )


def simulate(scenario: Scenario) -> Report:
    """Raises: Violation and others, with a note of the seed and how it is repeated."""
    try:
        return Simulation(scenario).run()
    except BaseException as error:
        error.add_note(f"seed {scenario.seed}; repeat it with: {repeat_command(scenario.seed)}")
        raise


def repeat_command(seed: int) -> str:
    """For people."""
    return f"PYTHONPATH=tests .venv/bin/python -m simulation.repeat {seed}"
