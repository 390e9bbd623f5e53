"""What operators can do with policies: message in, message out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from itertools import islice
from typing import Final

from holdfast_common.clock import utc_text
from holdfast_common.errors import UsageError
from holdfast_common.wire import operator_pb2
from holdfast_controller.decide.calendar import due_after, next_due
from holdfast_controller.decide.coverage import select
from holdfast_controller.decide.disk_choice import ALL_DISKS, WantedDisks, unsaved_disks
from holdfast_controller.decide.level import LEVELS
from holdfast_controller.decide.policy import Policy
from holdfast_controller.decide.policy_checks import Oddity
from holdfast_controller.decide.policy_text import policies_text
from holdfast_controller.decide.windows import next_opening
from holdfast_controller.runs.engine import Engine
from holdfast_controller.runs.foreseen_loss import ForeseenLoss
from holdfast_controller.runs.policies import (
    Action,
    ChangeRequest,
    PlannedPolicy,
    PolicyDesk,
    Surroundings,
    policy_warnings,
)
from holdfast_controller.runs.policy_by_hand import run_policy
from holdfast_controller.runs.world import World
from holdfast_controller.service.access_rules import current_actor
from holdfast_controller.service.operator_messages import started_message
from holdfast_controller.store.inventory import KnownVm
from holdfast_controller.store.policies import StoredPolicy, UnreadablePolicy

DUE_SHOWN: Final = 5
OPENINGS_SHOWN: Final = 3
USER_LENGTH_MAX: Final = 64
_LOCAL: Final = "%a %Y-%m-%d %H:%M %Z"


class PolicyActions:
    """Thread-safe."""

    def __init__(self, world: World, engine: Engine) -> None:
        self._world = world
        self._engine = engine
        self._desk = PolicyDesk(world)

    def list_policies(self, _: operator_pb2.Empty) -> operator_pb2.PolicyList:
        """By name, also those that cannot be read."""
        table = self._world.policies
        around = Surroundings.of(self._world, [])
        found = [
            self._summary(each, len(select(each.policy, around.vms).chosen))
            for each in table.policies()
        ]
        found += [_summary_of_unreadable(each) for each in table.unreadable()]
        return operator_pb2.PolicyList(policies=sorted(found, key=lambda each: each.name))

    def show_policy(self, request: operator_pb2.PolicyName) -> operator_pb2.PolicyDetail:
        """What it says, when it is due, and what that means for the VMs that are there. Raises: NotFound, UsageError."""
        table, now = self._world.policies, self._world.clock.now()
        stored = table.policy(request.name)
        policy = stored.policy
        around = Surroundings.of(self._world, [policy])
        selection = select(policy, around.vms)
        others: dict[int, list[str]] = {}
        for other in table.policies():
            if other.policy_id != stored.policy_id and other.policy.enabled:
                for number in select(other.policy, around.vms).chosen:
                    others.setdefault(number, []).append(other.policy.name)
        return operator_pb2.PolicyDetail(
            summary=self._summary(stored, len(selection.chosen)),
            text=policies_text([policy]),
            template=policies_text([policy], with_examples=True),
            due=list(_due_messages(policy, now)),
            openings=list(_opening_messages(policy, now)),
            vms=_vm_messages(around.known, selection.chosen, others, policy.wanted_disks),
            excluded=_vm_messages(around.known, selection.excluded, others, ALL_DISKS),
            warnings=policy_warnings(policy, around, self._world),
            time_zone=policy.time_zone,
        )

    def apply(self, request: operator_pb2.PolicyText) -> operator_pb2.PolicyChanges:
        """Make policies as a text says, or tell what that would change. Raises: UsageError, Refused, NotFound."""
        wanted = ChangeRequest(
            text=request.text,
            file=request.file,
            only_new=request.only_new,
            policy_id=request.policy_id,
            revision=request.revision,
            allowed=frozenset(_oddity(name) for name in request.allow),
        )
        planned = self._desk.change(wanted, actor=_actor(request.user), dry_run=request.dry_run)
        now = self._world.clock.now()
        return operator_pb2.PolicyChanges(
            policies=[_change_message(each, now) for each in planned.policies],
            done=not request.dry_run,
            uncovered=[known.vm.name for known in planned.uncovered],
            dropped=_loss_message(planned.loss),
        )

    def delete(self, request: operator_pb2.PolicyDeletion) -> operator_pb2.PolicyChanges:
        """Take a policy away, or tell what that would mean. Raises: NotFound, Refused."""
        planned = self._desk.delete(
            request.name,
            revision=request.revision,
            actor=_actor(request.user),
            dry_run=request.dry_run,
        )
        return operator_pb2.PolicyChanges(
            policies=[operator_pb2.PolicyChange(name=request.name, action=Action.DELETE)],
            done=not request.dry_run,
            revision=planned.revision,
            uncovered=[known.vm.name for known in planned.uncovered],
            dropped=_loss_message(planned.loss),
        )

    def run(self, request: operator_pb2.PolicyRun) -> operator_pb2.RunStarted:
        """Begin (or only plan) a run of it now. Raises: as `run_policy`."""
        if request.level not in {"", *LEVELS}:
            expected = ", ".join(LEVELS)
            raise UsageError("unknown level", level=request.level, expected=expected)
        found = run_policy(
            self._world, self._engine, request.name, level=request.level, dry_run=request.dry_run
        )
        message = started_message(self._world, found.started)
        message.told.extend(found.told)
        return message

    def _summary(self, stored: StoredPolicy, vms: int) -> operator_pb2.PolicySummary:
        policy = stored.policy
        return operator_pb2.PolicySummary(
            name=policy.name,
            policy_id=stored.policy_id,
            revision=stored.revision,
            enabled=policy.enabled,
            next_due_at=_next_due(policy, self._world.clock.now()) if policy.enabled else "",
            vms=vms,
            promise=policy.promise,
            description=policy.description,
            created_at=utc_text(stored.created_at),
            changed_at=utc_text(stored.changed_at),
            changed_by=stored.changed_by,
        )


def _summary_of_unreadable(stored: UnreadablePolicy) -> operator_pb2.PolicySummary:
    return operator_pb2.PolicySummary(
        name=stored.name,
        policy_id=stored.policy_id,
        revision=stored.revision,
        problem=stored.problem,
    )


def _change_message(planned: PlannedPolicy, now: datetime) -> operator_pb2.PolicyChange:
    return operator_pb2.PolicyChange(
        name=planned.policy.name,
        action=planned.action,
        fields=[
            operator_pb2.PolicyFieldChange(field=each.field, before=each.before, after=each.after)
            for each in planned.fields
        ],
        vms=len(planned.vms),
        next_due_at=_next_due(planned.policy, now) if planned.policy.enabled else "",
        warnings=planned.warnings,
    )


def _loss_message(loss: ForeseenLoss) -> operator_pb2.DroppedPoints | None:
    if not loss.points:
        return None
    return operator_pb2.DroppedPoints(points=loss.points, vms=loss.vms, oldest=loss.oldest)


def _next_due(policy: Policy, now: datetime) -> str:
    """Empty when no moment comes: a calendar of one year may be over by now."""
    try:
        return utc_text(next_due(policy.calendar, now))
    except UsageError:
        return ""


def _due_messages(policy: Policy, now: datetime) -> Iterator[operator_pb2.PolicyMoment]:
    try:
        for moment in islice(due_after(policy.calendar, now), DUE_SHOWN):
            yield _moment_message(policy, moment)
    except UsageError:
        return  # see `_next_due`


def _moment_message(policy: Policy, moment: datetime) -> operator_pb2.PolicyMoment:
    local = moment.astimezone(policy.calendar.zone)
    return operator_pb2.PolicyMoment(at=utc_text(moment), local=local.strftime(_LOCAL))


def _opening_messages(policy: Policy, now: datetime) -> Iterator[operator_pb2.PolicyOpening]:
    """The one that is open and the next ones; a single one without times when it is always open."""
    moment = now
    for _ in range(OPENINGS_SHOWN):
        opening = next_opening(policy.windows, moment)
        if opening.opens_at is None or opening.closes_at is None:
            yield operator_pb2.PolicyOpening()
            return
        yield operator_pb2.PolicyOpening(
            opens=_moment_message(policy, opening.opens_at),
            closes=_moment_message(policy, opening.closes_at),
        )
        moment = opening.closes_at


def _vm_messages(
    known: Sequence[KnownVm],
    numbers: Sequence[int],
    others: Mapping[int, Sequence[str]],
    wanted: WantedDisks,
) -> list[operator_pb2.PolicyVm]:
    return [
        operator_pb2.PolicyVm(
            vcenter=known[number].vcenter_name,
            name=known[number].vm.name,
            instance_uuid=known[number].vm.instance_uuid,
            unprotected=[
                f"{disk.label}: {disk.reason}"
                for disk in unsaved_disks(known[number].vm.disks, (wanted,))
            ],
            other_policies=others.get(number, ()),
        )
        for number in numbers
    ]


def _oddity(name: str) -> Oddity:
    try:
        return Oddity(name)
    except ValueError as error:
        expected = ", ".join(Oddity)
        raise UsageError(
            "nothing of this name can be allowed", value=name[:64], expected=expected
        ) from error


def _actor(user: str) -> str:
    """Who calls, as it was proven; in brackets how the operating system calls him, as his program says."""
    named = "".join(c for c in user[:USER_LENGTH_MAX] if c.isprintable())
    return f"{current_actor()} ({named})" if named else current_actor()
