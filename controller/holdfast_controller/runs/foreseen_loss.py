"""Which restore points a change of policies gives away: kept by the rules of now, dropped by those to come.

Only the catalogue is asked, so that a change needs no repository: what is held there, or read just now, is not seen,
and may be counted although it stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from holdfast_common.identity import LineageId
from holdfast_controller.decide.policy import Policy
from holdfast_controller.decide.policy_retention import PolicyRule, plan_by_policies
from holdfast_controller.decide.retention import KnownPoint
from holdfast_controller.decide.selection import SelectableVm
from holdfast_controller.runs.forget_by_policies import rules_by_lineage
from holdfast_controller.runs.forget_by_rule import fault_of_points
from holdfast_controller.runs.world import World
from holdfast_controller.store.inventory import KnownVm


@dataclass(frozen=True, slots=True, kw_only=True)
class ForeseenLoss:
    """How many points of how many VMs, and when the oldest of them was made (UTC, ISO text; empty: there are none)."""

    points: int = 0
    vms: int = 0
    oldest: str = ""


def foreseen_loss(
    world: World,
    known: Sequence[KnownVm],
    vms: Sequence[SelectableVm],
    *,
    before: Sequence[Policy],
    after: Sequence[Policy],
) -> ForeseenLoss:
    """What the policies ``after`` drop of what those ``before`` keep. Raises: StoreFailed, Locked."""
    old = rules_by_lineage(world, before, known, vms)
    new = rules_by_lineage(world, after, known, vms)
    changed = [each for each, rules in new.items() if _said(rules) != _said(old.get(each, ()))]
    if not changed:
        return ForeseenLoss()
    fault = fault_of_points(world)
    now, repository_id = world.clock.now(), world.keeper.repository_id
    lost: list[str] = []
    poorer = 0
    for lineage_id in sorted(changed):
        points = [
            KnownPoint(
                point_id=row.point_id,
                lineage_id=row.lineage_id,
                created_at=row.created_at,
                fault=fault(row),
            )
            for row in world.catalogue.of_lineage(LineageId(lineage_id))
            if row.repository_id == repository_id
        ]
        kept = {each.point.point_id for each in plan_by_policies(points, old, now=now) if each.kept}
        gone = [
            each.point.created_at
            for each in plan_by_policies(points, new, now=now)
            if not each.kept and each.point.point_id in kept
        ]
        lost += gone
        poorer += bool(gone)
    return ForeseenLoss(points=len(lost), vms=poorer, oldest=min(lost, default=""))


def _said(rules: Sequence[PolicyRule]) -> set[tuple[object, bool]]:
    """What rules say, whatever their policies are called."""
    return {(each.rule, each.enabled) for each in rules}
