"""`holdfast why`: what was decided for a job, a run or a VM, what it waited for, and where its time went."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from holdfast_common.clock import parse_utc
from holdfast_common.errors import CapabilityAbsent, NotFound
from holdfast_common.identity import JobId, RunId
from holdfast_common.units import size_text
from holdfast_controller.decide.calendar import next_due
from holdfast_controller.decide.confidence import confidence_text
from holdfast_controller.decide.coverage import check_tags, select
from holdfast_controller.decide.job_state import JobState
from holdfast_controller.decide.job_times import JobTimes, Span, TimedEvent, job_times, together
from holdfast_controller.decide.machine_roles import OwnVms
from holdfast_controller.decide.vm_index import VmIndex
from holdfast_controller.runs.dispatch_notes import LANES
from holdfast_controller.runs.dispatcher import Dispatcher
from holdfast_controller.runs.own_machines import own_machines
from holdfast_controller.runs.results import PARTIAL_CODES
from holdfast_controller.runs.tracking_audits import confidence_of
from holdfast_controller.runs.world import World
from holdfast_controller.store.inventory import KnownVm
from holdfast_controller.store.jobs import JobRow
from holdfast_controller.store.policy_slots import PolicySlot

NAMED_MAX: Final = 20  # VMs of a run that are not done: a person reads no more


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """One answer. ``seconds``: how much of the time it accounts for; 0: none that is counted."""

    question: str
    answer: str
    seconds: float = 0.0


def explain(world: World, dispatcher: Dispatcher, name: str) -> list[Reason]:
    """Of a job or a run by its id, or of a VM by its name or instance uuid. Raises: NotFound."""
    try:
        return list(_of_job(world, dispatcher, world.jobs.job(JobId(name))))
    except NotFound:
        pass
    jobs = world.jobs.jobs_of_run(RunId(name))
    if jobs:
        return list(_of_run(world, dispatcher, RunId(name), jobs))
    return list(_of_vm(world, dispatcher, name))


def _of_job(world: World, dispatcher: Dispatcher, job: JobRow) -> Iterator[Reason]:
    times = _times(world, job)
    yield Reason(
        question="what", answer=f"{job.kind} of {job.subject}: {job.state}", seconds=times.seconds
    )
    yield from _asked_by(world, job)
    if job.level:
        answer = f"{job.level}: {job.level_reason}" if job.level_reason else job.level
        if job.level != job.level_asked:
            answer += f" ({job.level_asked} was asked)"
        yield Reason(question="level", answer=answer)
    point = world.catalogue.of_job(job.job_id) if job.kind == "backup" else None
    if point is not None:
        answer = confidence_text(confidence_of(world, point))
        yield Reason(question="confidence of the point", answer=answer)
    placed = [event.detail for event in world.jobs.events(job.job_id) if event.event == "placed"]
    if placed:
        yield Reason(question="transport", answer=placed[-1])
    if job.agent_id:
        yield Reason(question="proxy", answer=_agent_name(world, job.agent_id))
    for event in world.jobs.events(job.job_id):
        if event.event in ("told", "trying again", LANES):
            yield Reason(question=event.event, answer=event.detail)
    if job.error is not None:
        yield Reason(question=f"why {job.state}", answer=job.error.text())
    for warned in job.warnings:
        is_why = job.state is JobState.PARTIAL and warned.code in PARTIAL_CODES
        yield Reason(question="why partial" if is_why else "warning", answer=warned.message)
    for wait in dispatcher.waits(job.job_id)[-1:]:
        yield Reason(question="waits now for", answer=wait.load.text, seconds=wait.seconds)
    for slowdown in world.streams.slowdowns(job.job_id, world.clock.monotonic_seconds()):
        yield Reason(
            question="is slowed now by",
            answer=f"{slowdown.load.text}, to {size_text(slowdown.bytes_per_second)}/s",
            seconds=slowdown.seconds,
        )
    yield from _where_time_went(times, job)


def _of_run(
    world: World, dispatcher: Dispatcher, run_id: RunId, jobs: Sequence[JobRow]
) -> Iterator[Reason]:
    counts: dict[str, int] = {}
    for job in jobs:
        counts[job.state] = counts.get(job.state, 0) + 1
    told = ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))
    yield Reason(question="what", answer=f"{jobs[0].kind} of {len(jobs)}: {told}")
    yield from _asked_by(world, jobs[0])
    slot = world.policy_slots.of_run(run_id)
    if slot is not None:
        yield from _of_slot(slot)
    else:
        for event in world.jobs.events(jobs[0].job_id):
            if event.event == "told":
                yield Reason(question="told", answer=event.detail)
    yield from _without_success(jobs)
    times = {job.job_id: _times(world, job) for job in jobs}
    waits = together([span for each in times.values() for span in each.waits])
    for span in waits:
        yield Reason(
            question="jobs waited, all together, for", answer=span.what, seconds=span.seconds
        )
    last = max(jobs, key=lambda job: (not job.ended, job.finished_at))
    yield Reason(
        question="what ended last", answer=last.subject, seconds=times[last.job_id].seconds
    )
    for wait in dispatcher.waits(last.job_id)[-1:]:
        yield Reason(question="waits now for", answer=wait.load.text, seconds=wait.seconds)
    yield from _where_time_went(times[last.job_id], last)


def _without_success(jobs: Sequence[JobRow]) -> Iterator[Reason]:
    """Which of a run's jobs are not done, and why; some of them when there are many."""
    left = [job for job in jobs if job.ended and job.state is not JobState.DONE]
    for job in left[:NAMED_MAX]:
        texts = [warned.message for warned in job.warnings if warned.code in PARTIAL_CODES]
        if job.error is not None:
            texts = [job.error.text()]
        yield Reason(question=f"{job.state}", answer=f"{job.subject}: {'; '.join(texts)}")
    if len(left) > NAMED_MAX:
        advice = f"see `holdfast job list --run {jobs[0].run_id}`"
        yield Reason(question="not done", answer=f"{len(left) - NAMED_MAX} more: {advice}")


def _of_vm(world: World, dispatcher: Dispatcher, name: str) -> Iterator[Reason]:
    found = [
        known
        for known in world.vcenters.inventory.vms()
        if name in (known.vm.name, known.vm.instance_uuid)
    ]
    if not found:
        raise NotFound(
            "there is no job, no run and no VM of this name",
            name=name,
            advice="see `holdfast job list` and `holdfast inventory list`",
        )
    own = OwnVms(own_machines(world))
    for known in found:
        for role in own.roles(known.vm):
            yield Reason(question="a case of its own", answer=role.text)
        yield from _policies(world, known)
        if not known.vm.protected_disks:
            yield Reason(question="what to back up", answer="nothing: it has no disk that can be")
        job = world.jobs.last_backup(
            vcenter_id=known.vcenter_id, instance_uuid=known.vm.instance_uuid
        )
        running = [
            each
            for each in world.jobs.unfinished()
            if each.instance_uuid == known.vm.instance_uuid and each.vcenter_id == known.vcenter_id
        ]
        job = running[0] if running else job
        if job is None:
            yield Reason(
                question="what", answer=f"{known.vm.name} was never backed up by this controller"
            )
        else:
            yield Reason(question="newest job", answer=job.job_id)
            yield from _of_job(world, dispatcher, job)
        yield from _left_out(world, known.vm.name)


def _policies(world: World, known: KnownVm) -> Iterator[Reason]:
    """Those that select it, and when they are due next."""
    inventory = world.vcenters.inventory
    (vm,) = (each for other, each in inventory.selectable() if other == known)
    index, found = VmIndex([vm]), False
    for stored in world.policies.policies():
        policy = stored.policy
        try:
            check_tags(policy, index, inventory.tags.sources())
        except CapabilityAbsent as error:
            yield Reason(question=f"policy {policy.name}", answer=str(error))
            continue
        if not select(policy, index).chosen:
            continue
        found = True
        due = next_due(policy.calendar, world.clock.now()).isoformat(timespec="minutes")
        answer = f"selects it, next due at {due}" if policy.enabled else "is switched off"
        pending = world.policy_slots.pending(stored.policy_id)
        if pending is not None and policy.enabled:
            told = pending.told
            answer = f"selects it, but its run of {pending.slot.isoformat(timespec='minutes')} cannot begin yet: {told}"
        yield Reason(question=f"policy {policy.name}", answer=answer)
    if not found:
        answer = "no policy selects it: it is backed up only when somebody asks for it"
        yield Reason(question="policies", answer=answer)


def _left_out(world: World, name: str) -> Iterator[Reason]:
    """What the newest run of each policy says of this VM."""
    for stored in world.policies.policies():
        slot = world.policy_slots.last(stored.policy_id)
        for text in slot.told.split("; ") if slot is not None else ():
            if text.startswith(f"{name}: "):
                yield Reason(question=f"policy {stored.policy.name}", answer=text)


def _asked_by(world: World, job: JobRow) -> Iterator[Reason]:
    request = world.runs.run(job.run_id).request
    policy = str(request.get("policy") or "")
    by = f"policy {policy}" if policy else "an operator"
    if request.get("by_hand"):
        by = f"an operator, who ran policy {policy}"
    kept = world.keeping.of_run(job.run_id)
    if kept is not None:
        by = f"the controller, which keeps the repository ({kept.task} was due at {kept.slot.isoformat(timespec='minutes')})"
    yield Reason(question="asked by", answer=f"{by}, at {job.created_at}")


def _of_slot(slot: PolicySlot) -> Iterator[Reason]:
    yield Reason(question="due at", answer=slot.slot.isoformat(timespec="seconds"))
    for text in slot.told.split("; ") if slot.told else ():
        yield Reason(question="told", answer=text)


def _where_time_went(times: JobTimes, job: JobRow) -> Iterator[Reason]:
    for span in times.waits_by_thing:
        yield Reason(question="waited for", answer=span.what, seconds=span.seconds)
    for span in times.slowed:
        yield Reason(question="was slowed by", answer=span.what, seconds=span.seconds)
    for span in times.lanes:
        yield Reason(question="lane", answer=span.what, seconds=span.seconds)
    for span in times.states:
        if span.seconds >= 0.05:
            yield Reason(question="was", answer=_state_text(span, job), seconds=span.seconds)
    longest = times.longest
    if longest is not None and longest.seconds > 0:
        yield Reason(question="what took longest", answer=longest.what, seconds=longest.seconds)


def _state_text(span: Span, job: JobRow) -> str:
    if span.what == JobState.TRANSFERRING and job.done_bytes and span.seconds > 0:
        rate = size_text(int(job.done_bytes / span.seconds))
        return f"{span.what}: {size_text(job.done_bytes)}, {rate}/s"
    return span.what


def _times(world: World, job: JobRow) -> JobTimes:
    events = [
        TimedEvent(at=parse_utc(event.at), event=event.event, detail=event.detail)
        for event in world.jobs.events(job.job_id)
    ]
    return job_times(events, now=world.clock.now())


def _agent_name(world: World, agent_id: str) -> str:
    found = [agent.host_name for agent in world.link.connected() if agent.agent_id == agent_id]
    return f"{found[0]} ({agent_id})" if found else agent_id
