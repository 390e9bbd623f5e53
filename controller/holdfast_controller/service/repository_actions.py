"""What operators can do with the repository itself: message in, message out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from functools import partial
from typing import Final

from holdfast_common.errors import NotFound, UsageError
from holdfast_common.identity import PointId
from holdfast_common.repository.forget import ForgetPlan, PointName
from holdfast_common.repository.hang_watch import StopWhenGivenUp, while_it_answers
from holdfast_common.repository.prune_report import PruneLimits
from holdfast_common.wire import operator_pb2
from holdfast_controller.decide.retention import RetentionRule
from holdfast_controller.runs.clock_watch import accept_clock
from holdfast_controller.runs.engine import Engine
from holdfast_controller.runs.forget_by_policies import ForgetByPolicies
from holdfast_controller.runs.forget_by_rule import ForgetByRule
from holdfast_controller.runs.requests import PruneRequest
from holdfast_controller.runs.world import World
from holdfast_controller.service.access_rules import current_actor
from holdfast_controller.service.operator_messages import started_message
from holdfast_controller.service.retention_messages import decision_messages, rule_of
from holdfast_controller.store.catalogue import PointRow

GIVING_UP: Final = (
    "a repair from another copy could still bring back what is given up: `holdfast repo repair --from COPY`",
    "data that only it needs dies at the next prunes; the damaged manifest is moved to aside/ in the repository",
)
_MISSING: Final = (
    "which the catalogue keeps: put it back (`holdfast repo repair --from COPY`), or let it go with"
    " `holdfast repo forget POINT`; until then prune deletes nothing"
)


class RepositoryActions:
    """Thread-safe."""

    def __init__(self, world: World, engine: Engine) -> None:
        self._world = world
        self._engine = engine
        self._care = engine.care

    def start_prune(self, request: operator_pb2.PruneRequest) -> operator_pb2.RunStarted:
        """Begin one round of pruning, or one that only looks. Raises: Locked, NoRepository."""
        defaults = PruneLimits()
        grace = defaults.grace
        if request.HasField("grace_minutes"):
            grace = timedelta(minutes=request.grace_minutes)
        limits = PruneLimits(
            grace=grace,
            seconds_max=request.seconds_max or defaults.seconds_max,
            moved_bytes_max=request.moved_bytes_max or defaults.moved_bytes_max,
            dry_run=request.dry_run,
            accept_clock=request.accept_clock,
        )
        if request.accept_clock and not request.dry_run:
            accept_clock(self._world)
        started = self._engine.start_prune(PruneRequest(limits=limits, actor=current_actor()))
        return started_message(self._world, started)

    def forget(self, request: operator_pb2.ForgetRequest) -> operator_pb2.RepositoryChange:
        """Forget points that are named, and those that a rule leaves over.

        Raises: NotFound; UsageError when more than one VM has the name.
        """
        catalogue = self._world.catalogue
        give_up = {self._id_of(text) for text in request.give_up}
        named = [text for text in request.point_ids if text not in request.give_up]
        chosen = [catalogue.point(text) for text in named]
        rows = {row.point_id: row for row in self._points_of(request.vm)}
        rule = rule_of(request)
        chosen_by = self._chooser(request, rule, tuple(rows.values()))
        waited = StopWhenGivenUp()
        plan = while_it_answers(
            partial(
                self._care.forget,
                list({*(row.point_id for row in chosen), *give_up}),
                actor=current_actor(),
                dry_run=request.dry_run,
                give_up=give_up,
                choose=None if rule.is_empty and not request.by_policies else chosen_by.choose,
                check=waited.check,
            ),
            gave_up=waited.stop,
        )
        going = (*plan.forgotten, *plan.gone, *(item for item, _ in plan.given_up))
        return operator_pb2.RepositoryChange(
            plan=_forget_lines(plan, {row.point_id: row for row in (*rows.values(), *chosen)}),
            done=not request.dry_run,
            counts={
                "forgotten": len(plan.forgotten) + len(plan.gone),
                "given_up": len(plan.given_up),
                "kept": len(plan.kept),
            },
            names=[item.name.rpartition("/")[2] for item in going],
            given_up=[item.name.rpartition("/")[2] for item, _ in plan.given_up],
            decisions=decision_messages(chosen_by.told(plan), rows),
        )

    def _chooser(
        self, request: operator_pb2.ForgetRequest, rule: RetentionRule, rows: Sequence[PointRow]
    ) -> ForgetByRule | ForgetByPolicies:
        """What says which of these points go. Raises: Refused, UsageError."""
        only = frozenset(request.only)
        if not request.by_policies:
            return ForgetByRule(
                world=self._world,
                rule=rule,
                rows=rows,
                accept_clock=request.accept_clock,
                only=only,
            )
        if not rule.is_empty:
            raise UsageError("policies have rules of their own: give no other one with them")
        if request.accept_clock and not request.dry_run:
            accept_clock(self._world)
        return ForgetByPolicies.of(
            self._world, rows=rows, accept_clock=request.accept_clock, only=only
        )

    def _points_of(self, vm: str) -> list[PointRow]:
        """Of one VM, by its instance uuid or by a name that no other one has; empty text: all points."""
        catalogue = self._world.catalogue
        if not vm:
            return catalogue.points()
        if rows := catalogue.points(instance_uuid=vm.lower()):
            return rows  # first: whoever names a VM so hides no other one
        rows = catalogue.points(vm_name=vm)
        if not rows:
            raise NotFound("no restore point is of a VM of that name or instance uuid", vm=vm)
        uuids = sorted({row.instance_uuid for row in rows})
        if len(uuids) > 1:
            raise UsageError(
                "restore points of more than one VM have this name",
                vm=vm,
                instance_uuids=", ".join(uuids),
                advice="give the instance uuid; `holdfast point list --vm UUID` shows its points",
            )
        return rows

    def _id_of(self, text: str) -> PointId:
        """Of a point that the catalogue may not know: then it is the last part of its object's name."""
        last = text.rpartition("/")[2]
        try:
            return self._world.catalogue.point(last).point_id
        except NotFound:
            return PointId(last)

    def rebuild(self, request: operator_pb2.RebuildRequest) -> operator_pb2.RepositoryChange:
        """Make the catalogue of points anew, from the repository alone."""
        waited = StopWhenGivenUp()
        rebuilt = while_it_answers(
            partial(
                self._care.rebuild,
                actor=current_actor(),
                dry_run=request.dry_run,
                check=waited.check,
            ),
            gave_up=waited.stop,
        )
        lines = [f"add {point_id}" for point_id in rebuilt.added]
        lines += [f"missing: {point_id}, {_MISSING}" for point_id in rebuilt.missing]
        lines += [f"not usable: {text}" for text in rebuilt.unusable]
        return operator_pb2.RepositoryChange(
            plan=lines,
            done=not request.dry_run,
            counts={
                "added": len(rebuilt.added),
                "missing": len(rebuilt.missing),
                "unusable": len(rebuilt.unusable),
            },
        )


def _forget_lines(plan: ForgetPlan, rows: Mapping[PointId, PointRow]) -> list[str]:
    """What goes, what stays and why, for people."""

    def told(item: PointName) -> str:
        row = rows.get(PointId(item.name.rpartition("/")[2]))
        if row is None:
            return f"{item.name}, which the catalogue does not know"
        return f"{row.point_id} of {row.vm_name}, taken {row.created_at[:19]}"

    lines = [f"forget {told(item)}" for item in plan.forgotten]
    lines += [
        f"forget {told(item)}: it is not in the repository, and only the catalogue drops it"
        for item in plan.gone
    ]
    for item, reason in plan.given_up:
        lines.append(f"give up {told(item)}: its manifest cannot be read: {reason}")
    lines += GIVING_UP if plan.given_up else ()
    return lines + [f"keep {item.name.rpartition('/')[2]}: {reason}" for item, reason in plan.kept]
