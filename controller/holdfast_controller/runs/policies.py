"""Policies as operators change them and look at them: checked against what is there, all of a text or nothing.

After `service`, before `store.policies`; `decide` says what is odd.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import Final

from holdfast_common.errors import CapabilityAbsent, NotFound, Refused, UsageError
from holdfast_controller.decide.coverage import Selection, check_tags, select
from holdfast_controller.decide.policy import Policy
from holdfast_controller.decide.policy_checks import (
    Finding,
    Oddity,
    RunLengths,
    check_due,
    findings,
    refused,
)
from holdfast_controller.decide.policy_text import (
    WrittenPolicy,
    all_in_one,
    field_texts,
    read_policies,
)
from holdfast_controller.decide.selection import SelectableVm
from holdfast_controller.decide.vm_index import VmIndex
from holdfast_controller.runs.foreseen_loss import ForeseenLoss, foreseen_loss
from holdfast_controller.runs.world import World
from holdfast_controller.store.inventory import KnownVm
from holdfast_controller.store.policies import PolicyChange, StoredPolicy, UnreadablePolicy

LENGTHS_LOOKED_AT: Final = timedelta(days=35)  # a monthly full among them


class Action(StrEnum):
    """What becomes of a policy of a text."""

    CREATE = "create"
    CHANGE = "change"
    KEEP = "keep"
    DELETE = "delete"


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeRequest:
    """Make the policies so that they are as this text says.

    ``file``: what to call it in errors; "": it was made of options. ``only_new``: none of them may be there already.
    ``policy_id``, ``revision``: the text's only policy takes the place of this one; "": each that of its namesake.
    """

    text: str
    file: str = ""
    only_new: bool = False
    policy_id: str = ""
    revision: int = 0
    allowed: Collection[Oddity] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldChange:
    """One field, as it is written. ``before`` "": of a new policy."""

    field: str
    before: str
    after: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedPolicy:
    """What becomes of one policy, and what is to be told of it."""

    action: Action
    policy: Policy
    fields: tuple[FieldChange, ...]
    vms: tuple[KnownVm, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedChange:
    """What becomes of policies. ``uncovered``: VMs that a policy covers now, and none afterwards."""

    policies: tuple[PlannedPolicy, ...]
    uncovered: tuple[KnownVm, ...]
    loss: ForeseenLoss


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedDeletion:
    """As `PlannedChange`, of a policy that goes. ``revision``: the one that was looked at."""

    revision: int
    uncovered: tuple[KnownVm, ...]
    loss: ForeseenLoss


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What policies are looked at against: the same moment for all of them. Both lists are in one order."""

    known: Sequence[KnownVm]
    vms: Sequence[SelectableVm]
    lengths: Mapping[int, RunLengths]

    @classmethod
    def of(cls, world: World, policies: Sequence[Policy]) -> Surroundings:
        """As it is now. How long backups took is only asked when a window might be too short for one."""
        pairs = world.vcenters.inventory.selectable()
        by_vm: Mapping[tuple[str, str], RunLengths] = {}
        if any(policy.window for policy in policies):
            by_vm = world.runs.backup_lengths(world.clock.now() - LENGTHS_LOOKED_AT)
        identities = [(known.vcenter_id, known.vm.instance_uuid) for known, _ in pairs]
        lengths = {n: by_vm[each] for n, each in enumerate(identities) if each in by_vm}
        return cls([known for known, _ in pairs], VmIndex(vm for _, vm in pairs), lengths)


class PolicyDesk:
    """Thread-safe: everything that it uses is."""

    def __init__(self, world: World) -> None:
        self._world = world

    def change(self, request: ChangeRequest, *, actor: str, dry_run: bool) -> PlannedChange:
        """All policies of a text, or none of them.

        A dry run tells which points would be dropped that are kept now; otherwise that is refused unless it is allowed.
        Raises: UsageError with file, line, policy and field as far as they can be told; Refused, NotFound.
        """
        written = read_policies(request.text, file=request.file)
        replaced = self._replaced(request, written)
        before = [None if isinstance(each, UnreadablePolicy) else each for each in replaced]
        policies = [each.policy for each in written]
        around = Surroundings.of(self._world, policies)
        told = self._checked(request, written, before, around)
        plan = []
        for each, old, found in zip(policies, before, told, strict=True):
            selection = select(each, around.vms)
            plan.append(
                PlannedPolicy(
                    action=_action(each, old),
                    policy=each,
                    fields=_changed_fields(each, None if old is None else old.policy),
                    vms=tuple(around.known[number] for number in selection.chosen),
                    warnings=tuple(finding.text() for finding in found),
                )
            )
        gone = {each.policy_id for each in replaced if each is not None}
        uncovered = self._uncovered(around, gone=gone, new=policies)
        loss = self._loss(around, gone=gone, new=policies)
        if not dry_run:
            if loss.points and Oddity.FORGET not in request.allowed:
                raise Refused(
                    "restore points that are kept now would be dropped; nothing was changed",
                    points=loss.points,
                    vms=loss.vms,
                    oldest=loss.oldest,
                    advice=f"if that is meant, say so with `--allow {Oddity.FORGET}`",
                )
            changes = [
                PolicyChange(
                    policy=each.policy,
                    policy_id="" if old is None else old.policy_id,
                    revision=0 if old is None else old.revision,
                )
                for each, old in zip(plan, replaced, strict=True)
                if each.action is not Action.KEEP
            ]
            self._world.policies.change(changes, actor=actor)
        return PlannedChange(policies=tuple(plan), uncovered=uncovered, loss=loss)

    def delete(self, name: str, *, revision: int, actor: str, dry_run: bool) -> PlannedDeletion:
        """Take a policy away: what only it kept of VMs that others select as well is dropped by them.

        ``revision``: which the operator saw; 0: whichever it has. Raises: NotFound, Refused.
        """
        found = self._world.policies.find(name)
        around = Surroundings.of(self._world, [])
        planned = PlannedDeletion(
            revision=found.revision,
            uncovered=self._uncovered(around, gone={found.policy_id}, new=()),
            loss=self._loss(around, gone={found.policy_id}, new=()),
        )
        if not dry_run:
            self._world.policies.delete(
                found.policy_id, revision=revision or found.revision, actor=actor
            )
        return planned

    def _loss(
        self, around: Surroundings, *, gone: Collection[str], new: Sequence[Policy]
    ) -> ForeseenLoss:
        """Of restore points, when these ids go and these policies come."""
        stored = self._world.policies.policies()
        staying = [each.policy for each in stored if each.policy_id not in gone]
        return foreseen_loss(
            self._world,
            around.known,
            around.vms,
            before=[each.policy for each in stored],
            after=[*staying, *new],
        )

    def _uncovered(
        self, around: Surroundings, *, gone: Collection[str], new: Sequence[Policy]
    ) -> tuple[KnownVm, ...]:
        """VMs that lose their last policy when these ids go and these policies come."""

        def covered(policies: Iterable[Policy]) -> set[int]:
            enabled = [each for each in policies if each.enabled]
            return {number for each in enabled for number in select(each, around.vms).chosen}

        stored = self._world.policies.policies()
        staying = covered(each.policy for each in stored if each.policy_id not in gone)
        going = covered(each.policy for each in stored if each.policy_id in gone)
        return tuple(around.known[number] for number in sorted(going - staying - covered(new)))

    def _replaced(
        self, request: ChangeRequest, written: Sequence[WrittenPolicy]
    ) -> list[StoredPolicy | UnreadablePolicy | None]:
        """What each of them takes the place of; None: of nothing."""
        table = self._world.policies
        stored: list[StoredPolicy | UnreadablePolicy] = [*table.policies(), *table.unreadable()]
        if request.policy_id:
            if len(written) != 1:
                raise UsageError("one policy is edited at a time", policies=len(written))
            old = next((each for each in stored if each.policy_id == request.policy_id), None)
            if old is None:
                raise NotFound("the policy was deleted meanwhile; nothing was changed")
            if old.revision != request.revision:
                raise Refused(
                    "the policy was changed meanwhile; nothing was changed",
                    advice="look at it again with `holdfast policy show`",
                )
            return [old]
        by_name = {_name(each): each for each in stored}
        if request.only_new:
            for each in written:
                if each.policy.name in by_name:
                    raise each.refusal(
                        "a policy has this name already",
                        field="name",
                        advice="change it with `holdfast policy edit`, or with `holdfast policy apply`",
                    )
        return [by_name.get(each.policy.name) for each in written]

    def _checked(
        self,
        request: ChangeRequest,
        written: Sequence[WrittenPolicy],
        before: Sequence[StoredPolicy | None],
        around: Surroundings,
    ) -> list[list[Finding]]:
        """What is odd about each, when nothing is to be refused; all that is, is told together."""
        now = self._world.clock.now()
        told, wrong = [], list[UsageError]()
        for each, old in zip(written, before, strict=True):
            try:
                check_due(each.policy, now)
            except UsageError as error:
                facts = {key: value for key, value in error.facts.items() if key != "field"}
                field = str(error.facts.get("field", ""))
                wrong.append(each.refusal(error.message, field=field, advice=error.advice, **facts))
                continue
            found = _findings(each.policy, around, self._world)
            known = [] if old is None else _findings(old.policy, around, self._world)
            told.append(found)
            wrong += [
                each.refusal(odd.message, field=odd.field, advice=odd.advice, **odd.facts)
                for odd in refused(found, known, request.allowed)
            ]
        if wrong:
            raise all_in_one(wrong)
        return told


def _findings(policy: Policy, around: Surroundings, world: World) -> list[Finding]:
    selection: Selection = select(policy, around.vms)
    found = findings(policy, selection, around.vms, around.lengths, now=world.clock.now())
    try:
        check_tags(policy, around.vms, world.vcenters.inventory.tags.sources())
    except CapabilityAbsent as error:
        facts = {key: value for key, value in error.facts.items() if key != "selector"}
        field = "vms" if error.facts.get("selector") in policy.vms else "exclude"
        message = f"{error.message}: until they are, no run of it begins"
        found.append(
            Finding(oddity=None, field=field, message=message, advice=error.advice, facts=facts)
        )
    return found


def policy_warnings(policy: Policy, around: Surroundings, world: World) -> list[str]:
    """What is odd about a policy as it is now."""
    return [each.text() for each in _findings(policy, around, world)]


def _action(policy: Policy, old: StoredPolicy | None) -> Action:
    if old is None:
        return Action.CREATE
    return Action.KEEP if old.policy == policy else Action.CHANGE


def _changed_fields(policy: Policy, old: Policy | None) -> tuple[FieldChange, ...]:
    before = {} if old is None else field_texts(old)
    return tuple(
        FieldChange(field=name, before=before.get(name, ""), after=text)
        for name, text in field_texts(policy).items()
        if before.get(name) != text
    )


def _name(stored: StoredPolicy | UnreadablePolicy) -> str:
    return stored.name if isinstance(stored, UnreadablePolicy) else stored.policy.name
