"""What operators can do about backups: message in, message out."""

from __future__ import annotations

from holdfast_common.errors import UsageError
from holdfast_common.identity import RunId
from holdfast_common.wire import operator_pb2
from holdfast_controller.decide.disk_choice import WantedDisks, check_disk_selector
from holdfast_controller.decide.lanes import LANES_MAX
from holdfast_controller.decide.level import INCREMENTAL, LEVELS
from holdfast_controller.decide.retries import RetryKind
from holdfast_controller.runs.engine import Engine
from holdfast_controller.runs.pausing import pause, pause_of, refuse_while_paused, resume
from holdfast_controller.runs.requests import BackupRequest, RetryRequest
from holdfast_controller.runs.why import explain
from holdfast_controller.runs.world import World
from holdfast_controller.service.access_rules import current_actor
from holdfast_controller.service.operator_messages import started_message


class BackupActions:
    """Thread-safe."""

    def __init__(self, world: World, engine: Engine) -> None:
        self._world = world
        self._engine = engine

    def start_backup(self, request: operator_pb2.StartBackupRequest) -> operator_pb2.RunStarted:
        """Begin (or only plan) backups."""
        if request.method not in ("", "image"):
            raise UsageError("this method does not exist yet", method=request.method)
        if request.level not in {"", *LEVELS}:
            expected = ", ".join(LEVELS)
            raise UsageError("unknown level", level=request.level, expected=expected)
        if not request.dry_run:
            refuse_while_paused(self._world)
        started = self._engine.start_backup(
            BackupRequest(
                selectors=tuple(request.vms),
                excludes=tuple(request.excludes),
                vcenter=request.vcenter,
                level=request.level or INCREMENTAL,
                consistency=request.consistency or "crash",
                transport=request.transport,
                agent=request.agent,
                disks=_wanted_disks(request),
                lanes=_lanes(request),
            ),
            dry_run=request.dry_run,
        )
        return started_message(self._world, started)

    def retry_run(self, request: operator_pb2.RetryRequest) -> operator_pb2.RunStarted:
        """Begin (or only plan) backups of VMs of an earlier run again. Raises: NotFound, UsageError, Refused."""
        wanted = {
            RetryKind.FAILED: request.failed,
            RetryKind.SKIPPED: request.skipped,
            RetryKind.NOT_STARTED: request.not_started,
        }
        kinds = frozenset(kind for kind, is_wanted in wanted.items() if is_wanted)
        if not kinds:
            raise UsageError("which jobs of the run are to be tried again is not said")
        if not request.dry_run:
            refuse_while_paused(self._world)
        asked = RetryRequest(run_id=RunId(request.run_id), kinds=kinds)
        return started_message(self._world, self._engine.retry(asked, dry_run=request.dry_run))

    def pause(self, request: operator_pb2.PauseRequest) -> operator_pb2.PauseState:
        """Stop everything but restores. Raises: Refused when it is paused already."""
        stopping = pause(
            self._world, self._engine, actor=current_actor(), reason=request.reason.strip()
        )
        found = pause_of(self._world)
        assert found is not None
        return operator_pb2.PauseState(
            paused=True,
            since=found.since,
            actor=found.actor,
            reason=found.reason,
            stopping=stopping,
        )

    def resume(self, request: operator_pb2.Empty) -> operator_pb2.PauseState:
        """Go on. Raises: Refused when nothing is paused."""
        del request
        told = resume(self._world, self._engine, actor=current_actor())
        return operator_pb2.PauseState(paused=False, told=told)

    def explain(self, request: operator_pb2.ExplainRequest) -> operator_pb2.Explanation:
        """Why a VM, a run or a job is as it is. Raises: NotFound."""
        found = explain(self._world, self._engine.dispatcher, request.name)
        return operator_pb2.Explanation(
            reasons=[
                operator_pb2.Reason(
                    question=each.question, answer=each.answer, seconds=round(each.seconds, 3)
                )
                for each in found
            ]
        )


def _wanted_disks(request: operator_pb2.StartBackupRequest) -> WantedDisks:
    for selector in (*request.disks, *request.exclude_disks):
        check_disk_selector(selector)
    return WantedDisks(selectors=tuple(request.disks), excludes=tuple(request.exclude_disks))


def _lanes(request: operator_pb2.StartBackupRequest) -> int:
    if request.lanes > LANES_MAX:
        raise UsageError("out of range", lanes=request.lanes, expected=f"1 to {LANES_MAX}")
    return request.lanes or 1
