from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from holdfast_common.errors import UsageError
from holdfast_controller.decide.policy import LevelRule, Policy

SUNDAY = datetime(2026, 11, 22, 22, 0, tzinfo=UTC)


def policy(**changed: object) -> Policy:
    values: dict[str, object] = {"name": "gold", "vms": ("folder:/prod",), "start": "0 22 * * *"}
    return Policy(**{**values, **changed})  # type: ignore[arg-type]  # what is wrong is what is tested


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"name": "no spaces"}, "name"),
        ({"vms": ()}, "vms"),
        ({"vms": ("power:sleeping",)}, "vms"),
        ({"exclude": ("",)}, "exclude"),
        ({"start": "0 25 * * *"}, "start"),
        ({"start": "0 0 30 2 *"}, "start"),
        ({"level": LevelRule(full="every day")}, "level.full"),
        ({"level": LevelRule(differential="every day")}, "level.differential"),
        ({"level": LevelRule(full_days=-1)}, "level.full_days"),
        ({"window": "22-6"}, "window"),
        ({"time_zone": "Mars/Olympus"}, "time_zone"),
        ({"method": "magic"}, "method"),
        ({"consistency": "perfect"}, "consistency"),
        ({"when_not_reached": "shrug"}, "when_not_reached"),
        ({"transport": "pigeon"}, "transport"),
        ({"priority": 101}, "priority"),
        ({"attempts_max": 0}, "attempts_max"),
        ({"promise": "soon"}, "promise"),
        ({"resume_within": "61m"}, "resume_within"),
        ({"resume_within": "0s"}, "resume_within"),
        ({"resume_within": "1h"}, "resume_within"),
        ({"description": "x" * 257}, "description"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_its_field(
    changed: dict[str, object], field: str
) -> None:
    with pytest.raises(UsageError) as refused:
        policy(**changed)
    assert refused.value.facts["field"] == field


def test_a_run_is_full_when_its_calendar_of_fulls_was_due_since_the_run_before() -> None:
    weekly = policy(level=LevelRule(full="0 22 * * sun"))
    assert weekly.level_due(slot=SUNDAY, slot_before=SUNDAY - timedelta(days=1)) == "full"
    monday = SUNDAY + timedelta(days=1)
    assert weekly.level_due(slot=monday, slot_before=SUNDAY) == "incremental"
    # Sunday's run was missed: Monday's makes up for it
    assert weekly.level_due(slot=monday, slot_before=SUNDAY - timedelta(days=1)) == "full"
    assert weekly.level_due(slot=monday, slot_before=None) == "full"
    assert policy().level_due(slot=SUNDAY, slot_before=None) == "incremental"


def test_a_run_is_differential_when_its_calendar_says_so_and_no_full_is_due() -> None:
    mixed = policy(level=LevelRule(full="0 22 * * sun", differential="0 22 * * wed,sun"))
    wednesday = SUNDAY + timedelta(days=3)
    levels = [
        mixed.level_due(
            slot=SUNDAY + timedelta(days=day), slot_before=SUNDAY + timedelta(days=day - 1)
        )
        for day in range(8)
    ]
    assert levels == ["full", *["incremental"] * 2, "differential", *["incremental"] * 3, "full"]
    # the run of Wednesday was missed: Friday's makes up for it
    friday = wednesday + timedelta(days=2)
    before = wednesday - timedelta(days=1)
    assert mixed.level_due(slot=friday, slot_before=before) == "differential"
    # so were those of a week: the full counts
    assert mixed.level_due(slot=friday, slot_before=friday - timedelta(days=7)) == "full"


def test_a_vm_is_read_whole_again_after_so_many_days() -> None:
    monthly = policy(level=LevelRule(full_days=30))
    assert monthly.full_is_due(last_full=SUNDAY - timedelta(days=30), slot=SUNDAY)
    assert not monthly.full_is_due(last_full=SUNDAY - timedelta(days=29), slot=SUNDAY)
    # a night's backup ends hours after it was due, and the next full is no day later for that
    late = SUNDAY - timedelta(days=30) + timedelta(hours=7)
    assert monthly.full_is_due(last_full=late, slot=SUNDAY)
    assert not monthly.full_is_due(last_full=None, slot=SUNDAY)
    never = policy(level=LevelRule(full_days=0))
    assert not never.full_is_due(last_full=SUNDAY - timedelta(days=3000), slot=SUNDAY)


def test_how_long_a_snapshot_waits_is_a_time() -> None:
    assert policy(resume_within="10m").resume_seconds == 600
    assert policy(resume_within="90s").resume_seconds == 90
    assert policy().resume_seconds == 0


def test_a_promise_is_a_duration() -> None:
    assert policy(promise="26h").promised == timedelta(hours=26)
    assert policy(promise="2d").promised == timedelta(days=2)
    assert policy().promised is None
