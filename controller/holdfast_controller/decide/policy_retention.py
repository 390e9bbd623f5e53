"""Which points go when the rules of policies are carried out, for all VMs at once. Pure.

`retention` decides for one rule. Of a VM that several policies cover a point stays that any of them wants; of one that
no policy covers every point does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from holdfast_controller.decide.retention import (
    EMPTY_RULE,
    Decision,
    KnownPoint,
    RetentionRule,
    plan_retention,
)

NO_POLICY: Final = "no policy covers its VM"
ONLY_OFF: Final = "only policies that are switched off cover its VM"


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyRule:
    """What one policy keeps. ``enabled`` False: it still keeps, but nothing is dropped for it alone."""

    policy: str
    rule: RetentionRule
    enabled: bool = True


def plan_by_policies(
    points: Sequence[KnownPoint],
    rules: Mapping[str, Sequence[PolicyRule]],
    *,
    now: datetime,
    clock_problem: str = "",
) -> list[Decision]:
    """What becomes of each point, the newest of each VM first. ``rules``: by lineage; none: no policy covers it."""
    by_lineage: dict[str, list[KnownPoint]] = {}
    for point in points:
        by_lineage.setdefault(point.lineage_id, []).append(point)
    decisions: list[Decision] = []
    for lineage_id, members in sorted(by_lineage.items()):
        found = rules.get(lineage_id, ())
        if any(each.enabled for each in found):
            decisions += _together(members, found, now=now, clock_problem=clock_problem)
        else:
            why = ONLY_OFF if found else NO_POLICY
            everything = plan_retention(members, RetentionRule(), now=now)
            decisions += [_kept(each, why) for each in everything]
    return decisions


def _kept(decision: Decision, why: str) -> Decision:
    """An empty rule keeps everything already; here it is told whose fault that is."""
    others = [reason for reason in decision.reasons if reason != EMPTY_RULE]
    return Decision(point=decision.point, kept=True, reasons=(why, *others))


def _together(
    points: Sequence[KnownPoint],
    rules: Sequence[PolicyRule],
    *,
    now: datetime,
    clock_problem: str,
) -> list[Decision]:
    """Each rule for itself, then what any of them keeps. They tell of the points in one order."""
    told = [
        (each.policy, plan_retention(points, each.rule, now=now, clock_problem=clock_problem))
        for each in rules
    ]
    together = []
    for same in zip(*(found for _, found in told), strict=True):
        kept = any(each.kept for each in same)
        reasons: dict[str, None] = {}
        for (policy, _), each in zip(told, same, strict=True):
            if each.kept == kept:
                reasons |= dict.fromkeys(f"{policy}: {reason}" for reason in each.reasons)
        together.append(Decision(point=same[0].point, kept=kept, reasons=tuple(reasons)))
    return together
