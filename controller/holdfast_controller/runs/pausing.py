"""`holdfast pause`: nothing that loads hosts or storage begins, and what is at work gives everything back and stops.

Restores go on: who pauses because of load may need one. It outlives the controller, and is told until somebody resumes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Final

from holdfast_common.clock import utc_text
from holdfast_common.errors import HoldfastError, Paused, Refused
from holdfast_common.identity import RunId
from holdfast_controller.decide.retries import RetryKind
from holdfast_controller.runs.engine import Engine
from holdfast_controller.runs.loads import PAUSE
from holdfast_controller.runs.requests import RetryRequest
from holdfast_controller.runs.world import World
from holdfast_controller.store import settings as names
from holdfast_controller.store.runs import RunRow

AUDIT_OBJECT: Final = "backups"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pause:
    """Since when (UTC text), by whom, and why."""

    since: str
    actor: str
    reason: str


def pause_of(world: World) -> Pause | None:
    """None: nothing is paused."""
    found = world.settings.get(names.PAUSED)
    return Pause(**json.loads(found)) if found else None


def is_paused(world: World) -> bool:
    """Whether an operator stopped everything."""
    return bool(world.settings.get(names.PAUSED))


def refuse_while_paused(world: World) -> None:
    """For what somebody asks for by hand: it would wait without end. Raises: Refused."""
    paused = pause_of(world)
    if paused is not None:
        raise Refused(
            "everything but restores is paused, and so is this",
            since=paused.since,
            by=paused.actor,
            reason=paused.reason,
            advice="go on with `holdfast resume`, then run it again",
        )


def pause(world: World, engine: Engine, *, actor: str, reason: str) -> int:
    """Stop everything but restores; returns how many jobs stop now. Durable before the first of them does.

    Raises: Refused when it is paused already.
    """
    already = pause_of(world)
    if already is not None:
        raise Refused(
            "it is paused already", since=already.since, by=already.actor, reason=already.reason
        )
    found = Pause(since=utc_text(world.clock.now()), actor=actor, reason=reason)
    content = {"since": found.since, "actor": found.actor, "reason": found.reason}
    world.settings.set(names.PAUSED, json.dumps(content))
    world.audit.append(actor=actor, action="paused", object=AUDIT_OBJECT, result="done")
    return keep_paused(world, engine)


def keep_paused(world: World, engine: Engine) -> int:
    """Hold to what is written down: nothing begins while it is paused, and everything may when it is not.

    After a restart, and every few seconds: the database can fail although it wrote. Returns how many jobs stop now.
    """
    paused = pause_of(world)
    if paused is None:
        engine.dispatcher.open(PAUSE)
        return 0
    engine.dispatcher.shut(PAUSE)
    why = Paused("an operator paused everything", by=paused.actor, reason=paused.reason)
    return engine.stop_running(PAUSE, why)


def resume(world: World, engine: Engine, *, actor: str) -> list[str]:
    """Go on: what waited begins, and backups that were stopped begin anew. Returns what could not, for people.

    Raises: Refused when nothing is paused.
    """
    paused = pause_of(world)
    if paused is None:
        raise Refused("nothing is paused")
    stopped = _stopped_by(world, paused)
    told = _still_stopping(world, engine)
    world.settings.set(names.PAUSED, "")
    world.audit.append(actor=actor, action="resumed", object=AUDIT_OBJECT, result="done")
    engine.dispatcher.open(PAUSE)
    for run_id in stopped:
        try:
            engine.retry(
                RetryRequest(
                    run_id=run_id,
                    kinds=frozenset({RetryKind.FAILED, RetryKind.NOT_STARTED}),
                    codes=frozenset({Paused.code}),
                ),
                dry_run=False,
            )
        except HoldfastError as error:
            told.append(f"run {run_id} is not begun anew: {error}")
    return told


def _still_stopping(world: World, engine: Engine) -> list[str]:
    """Operators' own backups that have not ended yet as they were asked to: nobody would begin them anew."""
    stops = world.lifecycle.stops
    jobs = [
        world.jobs.job(job_id)
        for job_id in engine.dispatcher.running_on(PAUSE)
        if isinstance(stops.why(job_id), Paused)
    ]
    return [
        f"{job.subject} has not stopped yet; when it has, begin it anew with"
        f" `holdfast job retry {job.run_id} --failed`"
        for job in jobs
        if not _is_schedulers(world.runs.run(job.run_id))
    ]


def _stopped_by(world: World, paused: Pause) -> list[RunId]:
    """Operators' own backups; those of policies' calendars are gone on with by the scheduler, in their windows."""
    runs = world.runs.stopped_since(paused.since, code=Paused.code)
    return [run.run_id for run in runs if not _is_schedulers(run)]


def _is_schedulers(run: RunRow) -> bool:
    """Whether a due moment of a policy began it."""
    return bool(run.request.get("policy")) and not run.request.get("by_hand")
