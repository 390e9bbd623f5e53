from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast_common.clock import SystemClock
from holdfast_common.errors import InvalidTransition, NotFound
from holdfast_common.identity import JobId, RunId
from holdfast_controller.ledger import EntryId, EntryKind, EntryState, JobLedger
from holdfast_controller.store import ledger
from holdfast_controller.store.database import Database
from holdfast_controller.store.ledger import LedgerTable


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    made = Database(tmp_path / "controller.sqlite", [ledger.MIGRATIONS])
    yield made
    made.close()


@pytest.fixture
def table(database: Database) -> LedgerTable:
    return LedgerTable(database, SystemClock())


def job(table: LedgerTable, job_id: str = "job1", vcenter_id: str = "vc1") -> JobLedger:
    return JobLedger(
        ledger=table, run_id=RunId("run1"), job_id=JobId(job_id), vcenter_id=vcenter_id
    )


def test_an_intent_is_on_the_disk_before_the_act(table: LedgerTable, tmp_path: Path) -> None:
    entry_id = job(table).intend(EntryKind.SNAPSHOT, {"vm": "vm-1"})
    other = Database(tmp_path / "controller.sqlite", [ledger.MIGRATIONS])
    (found,) = LedgerTable(other, SystemClock()).open_entries()
    other.close()
    assert (found.entry_id, found.state, found.facts) == (
        entry_id,
        EntryState.INTENDED,
        {"vm": "vm-1"},
    )


def test_facts_are_added_on_the_way(table: LedgerTable) -> None:
    entry_id = job(table).intend(EntryKind.SNAPSHOT, {"vm": "vm-1"})
    table.made(entry_id, {"snapshot": "snapshot-7"})
    table.note(entry_id, {"more": "x"})
    found = table.entry(entry_id)
    assert found.state is EntryState.MADE
    assert found.facts == {"vm": "vm-1", "snapshot": "snapshot-7", "more": "x"}
    assert found.fact("unknown") == ""


def test_what_is_gone_is_no_longer_open_and_saying_so_twice_is_harmless(
    table: LedgerTable,
) -> None:
    entry_id = job(table).intend(EntryKind.SNAPSHOT, {})
    table.gone(entry_id)
    table.gone(entry_id)
    assert table.open_entries() == []
    with pytest.raises(InvalidTransition):
        table.made(entry_id, {})
    table.debt(entry_id, "late")
    assert table.debts() == []


def test_a_debt_stays_open_and_counts_its_attempts(table: LedgerTable) -> None:
    entry_id = job(table).intend(EntryKind.HOT_ADD, {})
    table.debt(entry_id, "first")
    table.debt(entry_id, "second" * 1000)
    (found,) = table.debts()
    assert (found.attempts, found.state) == (2, EntryState.DEBT)
    assert found.last_error.startswith("second")
    assert len(found.last_error) <= ledger.ERROR_LENGTH_MAX
    assert table.open_entries() == [found]


def test_what_was_wanted_is_kept_and_not_undone(table: LedgerTable) -> None:
    entry_id = job(table).intend(EntryKind.NEW_VM, {})
    table.kept(entry_id)
    assert table.open_entries() == []
    assert table.entry(entry_id).facts == {"outcome": "kept"}


def test_open_entries_are_found_by_vcenter_and_by_job(table: LedgerTable) -> None:
    first = job(table, "job1", "vc1").intend(EntryKind.SNAPSHOT, {})
    second = job(table, "job2", "vc2").intend(EntryKind.SNAPSHOT, {})
    assert [entry.entry_id for entry in table.open_entries()] == [first, second]
    assert [entry.entry_id for entry in table.open_entries(vcenter_id="vc2")] == [second]
    assert [entry.entry_id for entry in job(table, "job1").open_entries()] == [first]
    assert [entry.entry_id for entry in table.of_job(JobId("job2"))] == [second]


def test_an_unknown_entry_is_an_error(table: LedgerTable) -> None:
    for act in (table.gone, table.kept, table.entry):
        with pytest.raises(NotFound):
            act(EntryId("unknown"))
