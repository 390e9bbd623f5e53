"""The audit trail finds every edit."""

from __future__ import annotations

from pathlib import Path

import pytest

from holdfast_common.clock import SystemClock
from holdfast_controller.store.audit import AuditTrail
from holdfast_controller.store.database import Database
from holdfast_controller.store.schema import open_database


def filled(tmp_path: Path) -> tuple[Database, AuditTrail]:
    database = open_database(tmp_path / "d")
    trail = AuditTrail(database, SystemClock())
    for number in range(1, 6):
        assert trail.append(actor="a", action="revoke", object=str(number), result="ok") == number
    return database, trail


def test_an_untouched_trail_is_whole(tmp_path: Path) -> None:
    _, trail = filled(tmp_path)
    assert trail.first_broken() is None
    assert [entry.object for entry in trail.entries(limit=2)] == ["4", "5"]


@pytest.mark.parametrize(
    ("damage", "first"),
    [
        ("UPDATE audit SET result = 'no' WHERE sequence = 3", 3),
        ("UPDATE audit SET actor = 'ar', action = 'evoke' WHERE sequence = 2", 2),
        ("DELETE FROM audit WHERE sequence = 2", 2),
        ("DELETE FROM audit WHERE sequence = 1", 1),
        ("UPDATE audit SET sequence = 9 WHERE sequence = 4", 4),
        ("UPDATE audit SET previous_hash = hash WHERE sequence = 5", 5),
    ],
)
def test_the_first_entry_that_was_changed_is_named(tmp_path: Path, damage: str, first: int) -> None:
    database, trail = filled(tmp_path)
    database.execute(damage)
    assert trail.first_broken() == first


def test_an_entry_is_written_with_the_act_or_not_at_all(tmp_path: Path) -> None:
    database, trail = filled(tmp_path)

    def act() -> None:
        with database.transaction():
            trail.append(actor="a", action="revoke", object="6", result="ok")
            raise ValueError("act failed")

    with pytest.raises(ValueError, match="act failed"):
        act()
    assert len(trail.entries()) == 5
