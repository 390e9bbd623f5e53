"""Retention rules and what they say, as messages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from holdfast_common.identity import PointId
from holdfast_common.wire import operator_pb2
from holdfast_controller.decide.retention import Decision, RetentionRule
from holdfast_controller.store.catalogue import PointRow


def rule_of(request: operator_pb2.ForgetRequest) -> RetentionRule:
    """Raises: UsageError."""
    rule = request.rule
    return RetentionRule(
        keep_last=rule.keep_last or request.keep_last,
        keep_hourly=rule.keep_hourly,
        keep_daily=rule.keep_daily,
        keep_weekly=rule.keep_weekly,
        keep_monthly=rule.keep_monthly,
        keep_yearly=rule.keep_yearly,
        keep_within=rule.keep_within,
        time_zone=rule.time_zone or "UTC",
    )


def decision_messages(
    decisions: Iterable[Decision], rows: Mapping[PointId, PointRow]
) -> list[operator_pb2.RetentionDecision]:
    """In the same order."""
    return [
        operator_pb2.RetentionDecision(
            point_id=each.point.point_id,
            vm=rows[PointId(each.point.point_id)].vm_name,
            instance_uuid=rows[PointId(each.point.point_id)].instance_uuid,
            created_at=each.point.created_at,
            kept=each.kept,
            reasons=each.reasons,
        )
        for each in decisions
    ]
