from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from holdfast_common.errors import NotFound, Refused, UsageError
from holdfast_controller.store import audit, policies
from holdfast_controller.store.audit import AuditTrail
from holdfast_controller.store.database import Database
from holdfast_controller.store.policies import PolicyChange, PolicyTable
from support.policies import policy

MONDAY = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)


class StoppedClock:
    """Shows what it is set to."""

    def __init__(self) -> None:
        self.time = MONDAY

    def now(self) -> datetime:
        return self.time

    def monotonic_seconds(self) -> float:
        return 0.0


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    made = Database(tmp_path / "controller.sqlite", [policies.MIGRATIONS, audit.MIGRATIONS])
    yield made
    made.close()


@pytest.fixture
def clock() -> StoppedClock:
    return StoppedClock()


@pytest.fixture
def trail(database: Database, clock: StoppedClock) -> AuditTrail:
    return AuditTrail(database, clock)


@pytest.fixture
def table(database: Database, clock: StoppedClock, trail: AuditTrail) -> PolicyTable:
    return PolicyTable(database, clock, trail)


def told(trail: AuditTrail) -> list[tuple[str, str, str]]:
    return [(entry.actor, entry.action, entry.object) for entry in trail.entries()]


def test_a_policy_is_kept_as_it_was_given_with_who_made_it_and_when(table: PolicyTable) -> None:
    made = table.create(policy(priority=7), actor="ann")
    assert table.policies() == [made]
    assert made.policy == policy(priority=7)
    assert (made.revision, made.changed_by) == (1, "ann")
    assert made.created_at == made.changed_at == MONDAY


def test_policies_are_listed_by_name(table: PolicyTable) -> None:
    for name in ("silver", "bronze", "gold"):
        table.create(policy(name), actor="ann")
    assert [each.policy.name for each in table.policies()] == ["bronze", "gold", "silver"]


def test_a_changed_policy_keeps_its_id_and_its_birth(
    table: PolicyTable, clock: StoppedClock
) -> None:
    made = table.create(policy(), actor="ann")
    clock.time += timedelta(hours=1)
    renamed = replace(made.policy, name="platinum")
    changed = table.replace(made.policy_id, renamed, revision=1, actor="ben")
    assert changed.policy_id == made.policy_id
    assert (changed.created_at, changed.changed_at) == (MONDAY, MONDAY + timedelta(hours=1))
    assert (changed.revision, changed.changed_by) == (2, "ben")
    assert table.policies() == [changed]


def test_who_has_not_seen_the_last_change_overwrites_nothing(table: PolicyTable) -> None:
    made = table.create(policy(), actor="ann")
    table.replace(made.policy_id, policy(priority=1), revision=1, actor="ben")
    with pytest.raises(Refused, match="by=ben"):
        table.replace(made.policy_id, policy(priority=2), revision=1, actor="ann")
    with pytest.raises(Refused):
        table.delete(made.policy_id, revision=1, actor="ann")
    assert table.policy("gold").policy.priority == 1


def test_of_two_that_change_at_once_one_is_refused(table: PolicyTable) -> None:
    made = table.create(policy(), actor="ann")

    def change(priority: int) -> bool:
        try:
            table.replace(made.policy_id, policy(priority=priority), revision=1, actor="ann")
        except Refused:
            return False
        return True

    with ThreadPoolExecutor(4) as threads:
        assert sorted(threads.map(change, range(8))) == [False] * 7 + [True]
    assert table.policy("gold").revision == 2


def test_a_name_is_of_one_policy(table: PolicyTable) -> None:
    table.create(policy(), actor="ann")
    silver = table.create(policy("silver"), actor="ann")
    with pytest.raises(Refused, match="has this name already"):
        table.create(policy(), actor="ben")
    with pytest.raises(Refused, match="has this name already"):
        table.replace(silver.policy_id, policy(), revision=1, actor="ben")
    assert [each.changed_by for each in table.policies()] == ["ann", "ann"]


def test_several_changes_are_made_together_or_not_at_all(
    table: PolicyTable, trail: AuditTrail
) -> None:
    made = table.create(policy(), actor="ann")
    before = told(trail)
    change = PolicyChange(policy=policy(priority=1), policy_id=made.policy_id, revision=1)
    new = PolicyChange(policy=policy("silver"))
    with pytest.raises(Refused):
        table.change([change, new, new], actor="ben")
    assert table.policies() == [made]
    assert told(trail) == before
    table.change([change, new], actor="ben")
    assert [(each.policy.name, each.revision) for each in table.policies()] == [
        ("gold", 2),
        ("silver", 1),
    ]


def test_the_audit_trail_tells_who_did_what(table: PolicyTable, trail: AuditTrail) -> None:
    made = table.create(policy(), actor="ann")
    table.replace(made.policy_id, policy("platinum"), revision=1, actor="ben")
    table.delete(made.policy_id, revision=2, actor="cem")
    assert told(trail) == [
        ("ann", "policy created", "gold"),
        ("ben", "policy changed", "gold"),
        ("cem", "policy deleted", "platinum"),
    ]


def test_a_policy_that_is_not_there_is_not_found(table: PolicyTable) -> None:
    with pytest.raises(NotFound):
        table.policy("gold")
    made = table.create(policy(), actor="ann")
    table.delete(made.policy_id, revision=1, actor="ann")
    with pytest.raises(NotFound):
        table.policy("gold")
    with pytest.raises(Refused, match="deleted meanwhile"):
        table.replace(made.policy_id, policy(), revision=1, actor="ann")


@pytest.mark.parametrize(
    "content", ['{"name": "gold"}', "[]", "no JSON", '{"name": "gold", "from_the_future": 1}']
)
def test_a_policy_that_cannot_be_read_hides_no_other_and_can_be_deleted(
    table: PolicyTable, database: Database, content: str
) -> None:
    made = table.create(policy(), actor="ann")
    silver = table.create(policy("silver"), actor="ann")
    database.execute("UPDATE policies SET content = ? WHERE name = 'gold'", (content,))
    assert table.policies() == [silver]
    (unreadable,) = table.unreadable()
    assert (unreadable.policy_id, unreadable.name) == (made.policy_id, "gold")
    assert unreadable.problem
    with pytest.raises(UsageError, match="cannot be read"):
        table.policy("gold")
    table.delete(made.policy_id, revision=unreadable.revision, actor="ann")
    assert table.unreadable() == []
