from __future__ import annotations

import json

import pytest
from hypothesis import given, settings

from holdfast_common.errors import UsageError
from holdfast_controller.decide.policy import Policy
from holdfast_controller.decide.policy_values import policy_of_values, policy_values
from support.policies import policies, policy

LEAST: dict[str, object] = {"name": "gold", "vms": ["*"], "start": "0 22 * * *"}


@settings(max_examples=30)
@given(policies())
def test_a_policy_comes_back_from_its_values_as_it_was(made: Policy) -> None:
    assert policy_of_values(json.loads(json.dumps(policy_values(made)))) == made


def test_what_is_left_out_has_its_default() -> None:
    assert policy_of_values(LEAST) == Policy(name="gold", vms=("*",), start="0 22 * * *")


def test_points_are_counted_in_the_policys_own_time_zone_unless_another_is_named() -> None:
    there = policy_of_values({**LEAST, "time_zone": "Europe/Berlin"})
    assert there.retention.time_zone == "Europe/Berlin"
    values = {**LEAST, "time_zone": "Europe/Berlin", "retention": {"time_zone": "UTC"}}
    assert policy_of_values(values).retention.time_zone == "UTC"


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"strat": "x"}, "strat"),
        ({"level": {"ful": ""}}, "level.ful"),
        ({"retention": {"keep_dayly": 7}}, "retention.keep_dayly"),
        ({"retention": {"keep_daily": "7"}}, "retention.keep_daily"),
        ({"retention": {"keep_daily": -7}}, "retention.keep_daily"),
        ({"retention": {"keep_within": "soon"}}, "retention.keep_within"),
        ({"retention": 7}, "retention"),
        ({"level": {"full_days": 1.5}}, "level.full_days"),
        ({"level": {"full": "never"}}, "level.full"),
        ({"vms": "web1"}, "vms"),
        ({"vms": ["web1", 2]}, "vms[1]"),
        ({"enabled": "yes"}, "enabled"),
        ({"time_zone": 1}, "time_zone"),
        ({"priority": True}, "priority"),
        ({"when_not_reached": "shrug"}, "when_not_reached"),
    ],
)
def test_what_cannot_be_read_is_refused_by_its_field(
    changed: dict[str, object], field: str
) -> None:
    with pytest.raises(UsageError) as refused:
        policy_of_values({**LEAST, **changed})
    assert refused.value.facts["field"] == field


@pytest.mark.parametrize("name", ["name", "vms", "start"])
def test_a_policy_without_a_field_that_it_needs_is_refused(name: str) -> None:
    with pytest.raises(UsageError) as refused:
        policy_of_values({key: value for key, value in LEAST.items() if key != name})
    assert refused.value.facts["field"] == name


def test_a_key_that_is_nearly_right_is_answered_with_the_right_one() -> None:
    with pytest.raises(UsageError) as refused:
        policy_of_values({**LEAST, "retention": {"keep_dayly": 7}})
    assert refused.value.advice == "did you mean retention.keep_daily?"


def test_every_field_is_kept_also_those_at_their_defaults() -> None:
    values = policy_values(policy())
    assert values["priority"] == 50
    assert values["level"] == {"full_days": 30, "full": "", "differential": ""}
