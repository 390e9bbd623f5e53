"""What each event of a scenario does: what operators, guests, networks, disks and vCenters do to a controller."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from holdfast_common.identity import JobId, RunId
from holdfast_controller.decide.policy import LevelRule, Policy, WhenNotReached
from holdfast_controller.decide.retries import RetryKind
from holdfast_controller.runs import pausing
from holdfast_controller.runs.requests import BackupRequest, RetryRequest
from simulation.scenario import Event
from simulation.virtual_disks import VirtualDisk, VirtualFile, some_numbers
from simulation.virtual_vsphere import VirtualVm

if TYPE_CHECKING:
    from simulation.simulation import Simulation

Deed = Callable[[], object]
ACTOR: Final = "local:0"
SOON_SECONDS: Final = 0.7


def do(simulation: Simulation, event: Event) -> None:
    """Have it happen; what cannot happen just now does not."""
    if _DEEDS[event.kind](simulation, event.number):
        simulation.faults[event.kind] += 1
        simulation.kernel.trace.append(f"{simulation.kernel.now:.3f} {event.kind}")


def set_up(simulation: Simulation) -> None:
    """Nothing yet: the policy is made by an operator when the controller is there."""
    simulation.model.wrong.slow_tasks = 1.0


def is_paused(simulation: Simulation) -> bool:
    """Whether a controller is there and everything is paused."""
    world = simulation.controller.world
    return simulation.controller.is_up and world is not None and pausing.is_paused(world)


def resume(simulation: Simulation) -> None:
    """When faults stop, nothing is paused any more, and no policy begins anything."""

    def work() -> None:
        world, engine = simulation.controller.world, simulation.controller.engine
        assert world is not None
        assert engine is not None
        for stored in world.policies.policies():
            world.policies.delete(stored.policy_id, revision=stored.revision, actor=ACTOR)
        if pausing.is_paused(world):
            pausing.resume(world, engine, actor=ACTOR)

    if simulation.controller.is_up:
        simulation.operator("resume", work)
    else:
        kernel = simulation.kernel

        def later() -> None:
            resume(simulation)

        kernel.call_at(kernel.now + 1.0, later)


def look(simulation: Simulation) -> None:
    """The scheduler looks, as it does every few seconds."""

    def work() -> None:
        world, scheduler = simulation.controller.world, simulation.controller.scheduler
        assert world is not None
        assert scheduler is not None
        scheduler.look(world.clock.now())

    simulation.operator("look", work)


# -- operators -------------------------------------------------------------------------------------


def _backup(simulation: Simulation, number: int) -> bool:
    def work() -> None:
        engine = simulation.controller.engine
        assert engine is not None
        vms = [vm.name for vm in simulation.vms]
        chosen = tuple(vms) if number % 3 == 0 else (vms[number % len(vms)],)
        request = BackupRequest(
            selectors=chosen,
            level="full" if number % 7 == 6 else "incremental",
            consistency="filesystem" if number % 5 == 4 else "crash",
            when_not_reached=(
                WhenNotReached.LOWER,
                WhenNotReached.FAIL,
                WhenNotReached.RETRY,
            )[number % 11 % 3],
            transport="hotadd" if number % 4 == 3 else "",
        )
        engine.start_backup(request, dry_run=False)

    simulation.operator("backup", work)
    return simulation.controller.is_up


def _cancel(simulation: Simulation, number: int) -> bool:
    rows = simulation.connection.execute(
        "SELECT job_id FROM jobs WHERE finished_at IS NULL OR finished_at = '' ORDER BY job_id"
    ).fetchall()
    if not rows:
        return False
    job_id = JobId(str(rows[number % len(rows)][0]))

    def work() -> None:
        engine = simulation.controller.engine
        assert engine is not None
        engine.cancel(job_id)

    simulation.operator("cancel", work)
    return simulation.controller.is_up


def _retry(simulation: Simulation, number: int) -> bool:
    rows = simulation.connection.execute(
        "SELECT run_id FROM runs WHERE finished_at != '' ORDER BY run_id"
    ).fetchall()
    if not rows:
        return False
    run_id = RunId(str(rows[number % len(rows)][0]))

    def work() -> None:
        engine = simulation.controller.engine
        assert engine is not None
        engine.retry(RetryRequest(run_id=run_id, kinds=frozenset(RetryKind)), dry_run=False)

    simulation.operator("retry", work)
    return simulation.controller.is_up


def _look(simulation: Simulation, number: int) -> bool:
    """The scheduler looks; its policy is due once a minute."""
    del number

    def work() -> None:
        world, scheduler = simulation.controller.world, simulation.controller.scheduler
        assert world is not None
        assert scheduler is not None
        if not world.policies.policies():
            world.policies.create(_policy(), actor=ACTOR)
        scheduler.look(world.clock.now())

    simulation.operator("look", work)
    return simulation.controller.is_up


def _policy() -> Policy:
    return Policy(
        name="minutely",
        vms=("vm*",),
        start="* * * * *",
        consistency="crash",
        level=LevelRule(full_days=30),
    )


def _edit(simulation: Simulation, number: int) -> bool:
    def work() -> None:
        world, scheduler = simulation.controller.world, simulation.controller.scheduler
        assert world is not None
        assert scheduler is not None
        found = world.policies.policies()
        if not found:
            world.policies.create(_policy(), actor=ACTOR)
            return
        stored = found[0]
        if number % 4 == 0:
            world.policies.delete(stored.policy_id, revision=stored.revision, actor=ACTOR)
        else:
            window = "" if number % 3 else "mon-sun 01:00-01:01"
            changed = replace(stored.policy, priority=number % 100, window=window)
            world.policies.replace(stored.policy_id, changed, revision=stored.revision, actor=ACTOR)
        scheduler.look(world.clock.now())

    simulation.operator("edit", work)
    return simulation.controller.is_up


def _pause(simulation: Simulation, number: int) -> bool:
    del number

    def work() -> None:
        world, engine = simulation.controller.world, simulation.controller.engine
        assert world is not None
        assert engine is not None
        if pausing.is_paused(world):
            pausing.resume(world, engine, actor=ACTOR)
        else:
            pausing.pause(world, engine, actor=ACTOR, reason="a test")

    simulation.operator("pause", work)
    return simulation.controller.is_up


# -- processes and messages ------------------------------------------------------------------------


def _crash_controller(simulation: Simulation, number: int) -> bool:
    life = simulation.controller.life
    if life.dead:
        return False
    if number % 5 == 0 and _backup(simulation, number // 5):  # while its jobs are written down
        life.crash_at = life.steps + 2 + number % 3
    else:
        life.crash_at = life.steps + 1 + number % 150
    return True


def _stop_controller(simulation: Simulation, number: int) -> bool:
    del number
    up = simulation.controller.is_up
    simulation.controller.stop()
    return up


def _crash_agent(simulation: Simulation, number: int) -> bool:
    agents = simulation.agents
    agent = agents.all[number % len(agents.all)]
    kernel = simulation.kernel
    agent.life.crash_at = agent.life.steps + 1 + number % 6
    kernel.call_at(kernel.now + 1 + number % 20, lambda: agents.restart(agent))
    return True


def _partition(simulation: Simulation, number: int) -> bool:
    agent = simulation.agents.all[number % len(simulation.agents.all)]
    agent.away_until = simulation.kernel.now + 1 + number % 40
    return True


def _lose_answers(simulation: Simulation, number: int) -> bool:
    agent = simulation.agents.all[number % len(simulation.agents.all)]
    agent.lost_messages += 1 + number % 3
    return True


def _repeat(simulation: Simulation, number: int) -> bool:
    agent = simulation.agents.all[number % len(simulation.agents.all)]
    agent.repeated_messages += 1 + number % 3
    return True


def _delay(simulation: Simulation, number: int) -> bool:
    simulation.agents.delays = 2.0 + number % 30
    return True


def _store_before(simulation: Simulation, number: int) -> bool:
    simulation.controller.wrong.before += 1 + number % 4
    return True


def _store_after(simulation: Simulation, number: int) -> bool:
    simulation.controller.wrong.after += 1 + number % 4
    return True


def _full(simulation: Simulation, number: int) -> bool:
    del number
    simulation.agents.repository.full = True
    return True


def _clock(simulation: Simulation, number: int) -> bool:
    simulation.kernel.wall_offset += (-3600.0, 3600.0, -400 * 86400.0, 400 * 86400.0)[number % 4]
    return True


# -- vCenter -----------------------------------------------------------------------------------------


def _down(simulation: Simulation, number: int) -> bool:
    simulation.model.wrong.down_until = simulation.kernel.now + 1 + number % 60
    return True


def _logins_end(simulation: Simulation, number: int) -> bool:
    del number
    model = simulation.model
    model.counts["logins ended"] = model.counts.get("logins ended", 0) + len(model.logins)
    model.logins.clear()
    return True


def _lose_replies(simulation: Simulation, number: int) -> bool:
    simulation.model.wrong.replies_lost += 1 + number % 2
    return True


_TASKS: Final = (
    "CreateSnapshot_Task",
    "RemoveSnapshot_Task",
    "ConsolidateVMDisks_Task",
    "ReconfigVM_Task",
    "CreateSnapshotEx_Task",
)


def _task_fails(simulation: Simulation, number: int) -> bool:
    failed = simulation.model.wrong.tasks_failed
    method = _TASKS[number % len(_TASKS)]
    failed[method] = failed.get(method, 0) + 1 + number % 3
    return True


def _links_stay(simulation: Simulation, number: int) -> bool:
    simulation.model.wrong.leaves_links += 1 + number % 2
    return True


def _slow(simulation: Simulation, number: int) -> bool:
    simulation.model.wrong.slow_tasks = 2.0 + number % 20
    return True


# -- what happens to VMs ----------------------------------------------------------------------------------


def _vm(simulation: Simulation, number: int) -> VirtualVm | None:
    """One that is there, and that no task holds."""
    found = [vm for vm in simulation.vms if vm.moref in simulation.model.vms]
    vm = found[number % len(found)] if found else None
    return None if vm is None or vm.running() else vm


def _write(simulation: Simulation, number: int) -> bool:
    vm = _vm(simulation, number)
    if vm is None:
        return False
    for disk in vm.disks:
        for block in some_numbers(simulation.model.random, disk.count):
            simulation.model.write(vm, disk, block)
    return True


def _delete_vm(simulation: Simulation, number: int) -> bool:
    vm = _vm(simulation, number)
    if vm is None or len(simulation.vms) < 2:
        return False
    del simulation.model.vms[vm.moref]
    return True


def _user_snapshot(simulation: Simulation, number: int) -> bool:
    vm = _vm(simulation, number)
    if vm is None:
        return False
    simulation.model.make_snapshot(vm, f"before update {number}", "made by hand")
    return True


def _foreign_snapshot(simulation: Simulation, number: int) -> bool:
    """Of another Holdfast, or named as if it were ours."""
    vm = _vm(simulation, number)
    if vm is None:
        return False
    nonce = f"nonce={number:024x}" if number % 2 else "nonce="
    simulation.model.make_snapshot(vm, "holdfast 01J", f"Made by Holdfast. run=1 job=1 {nonce}")
    return True


def _users_own(simulation: Simulation, vm: VirtualVm, number: int) -> int | None:
    own = [n for n, each in enumerate(vm.snapshots) if not each.ours]
    del simulation
    return own[number % len(own)] if own else None


def _soon(simulation: Simulation, work: Callable[[], bool]) -> None:
    """When the moment has come, if it comes."""
    kernel = simulation.kernel

    def look() -> None:
        if simulation.faults_go_on and not work():
            kernel.call_at(kernel.now + SOON_SECONDS, look)

    look()


def _remove_user_snapshot(simulation: Simulation, number: int) -> bool:
    vm = _vm(simulation, number)
    if vm is None:
        return False
    found = simulation.model.make_snapshot(vm, f"a moment {number}", "made by hand")

    def remove() -> bool:
        if vm.running() or found not in vm.snapshots:
            return found not in vm.snapshots
        simulation.model.drop_snapshot(vm, found)
        return True

    kernel = simulation.kernel
    kernel.call_at(kernel.now + 1 + number % 20, lambda: _soon(simulation, remove))
    return True


def _revert(simulation: Simulation, number: int) -> bool:
    vm = _vm(simulation, number)
    found = None if vm is None else _users_own(simulation, vm, number)
    if vm is None or found is None:
        return _user_snapshot(simulation, number)
    simulation.model.revert(vm, vm.snapshots[found])
    return True


def _our_snapshot_by_hand(simulation: Simulation, number: int) -> bool:
    def remove() -> bool:
        vm = _vm(simulation, number)
        own = [] if vm is None else [each for each in vm.snapshots if each.ours]
        if vm is None or not own:
            return False
        simulation.model.drop_snapshot(vm, own[number % len(own)])
        return True

    _soon(simulation, remove)
    return True


def _extend(simulation: Simulation, number: int) -> bool:
    vm = _vm(simulation, number)
    if vm is None or vm.snapshots:
        return False
    simulation.model.extend(vm, vm.disks[number % len(vm.disks)])
    return True


def _power_lost(simulation: Simulation, number: int) -> bool:
    """Tracking begins anew, as its new id says (C5)."""
    vm = _vm(simulation, number)
    if vm is None:
        return False
    for disk in vm.disks:
        if disk.tracking:
            disk.tracking = f"52 power {number} {simulation.model.kernel.steps}"
            disk.changes = []
    return True


def _replace_disk(simulation: Simulation, number: int) -> bool:
    """Another disk in the same slot, with another uuid (C9)."""
    vm = _vm(simulation, number)
    if vm is None or vm.snapshots:
        return False
    old = vm.disks[-1]
    file = VirtualFile(f"{vm.name}/other_{number}.vmdk", None)
    simulation.model.files[file.path] = file
    disk = VirtualDisk(old.key, f"uuid-{vm.moref}-{number}", old.count, file, "")
    vm.disks[-1] = disk
    vm.version += 1
    for block in range(disk.count):
        simulation.model.write(vm, disk, block)
    return True


def _foreign_disk(simulation: Simulation, number: int) -> bool:
    """Somebody attaches a disk to a proxy."""
    agent = simulation.agents.all[number % len(simulation.agents.all)]
    vm = agent.vm
    taken = {each.unitNumber for each in vm.devices if each.key >= 2000}
    unit = next(n for n in range(16) if n not in taken and n != 7)
    sample = vm.devices[-1]
    backing = type(sample.backing)(fileName=f"[one] other/{number}.vmdk", diskMode="persistent")
    key = 9000 + number % 1000
    if any(each.key == key for each in vm.devices) or vm.running():
        return False
    vm.devices = [
        *vm.devices,
        type(sample)(key=key, controllerKey=1000, unitNumber=unit, backing=backing),
    ]
    return True


_DEEDS: Final[dict[str, Callable[[Simulation, int], bool]]] = {
    "backup": _backup,
    "write": _write,
    "cancel": _cancel,
    "look": _look,
    "retry": _retry,
    "crash the controller": _crash_controller,
    "stop the controller": _stop_controller,
    "crash an agent": _crash_agent,
    "partition an agent": _partition,
    "lose answers": _lose_answers,
    "repeat messages": _repeat,
    "delay messages": _delay,
    "vCenter is down": _down,
    "logins end": _logins_end,
    "replies are lost": _lose_replies,
    "a task fails": _task_fails,
    "links stay": _links_stay,
    "tasks are slow": _slow,
    "the store fails before": _store_before,
    "the store fails after": _store_after,
    "the repository is full": _full,
    "the clock jumps": _clock,
    "a VM is deleted": _delete_vm,
    "a VM is reverted": _revert,
    "a user's snapshot": _user_snapshot,
    "a user removes his snapshot": _remove_user_snapshot,
    "a disk is extended": _extend,
    "our snapshot is removed by hand": _our_snapshot_by_hand,
    "a foreign snapshot": _foreign_snapshot,
    "a foreign disk": _foreign_disk,
    "a policy is edited": _edit,
    "pause and resume": _pause,
    "power is lost": _power_lost,
    "a disk is replaced": _replace_disk,
}
