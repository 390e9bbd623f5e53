"""What an agent promised stands in files of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from holdfast_agent.ledger import AgentLedger
from holdfast_common.errors import ConfigurationError
from support.session_rig import new_attempt


def test_accepted_then_result_then_forgotten(tmp_path: Path) -> None:
    ledger = AgentLedger(tmp_path / "attempts")
    attempt, other = new_attempt(), new_attempt(7)
    ledger.accepted(attempt)
    ledger.accepted(other)
    assert sorted(ledger.unfinished(), key=repr) == sorted([attempt, other], key=repr)
    ledger.write_result(attempt, b"bytes")
    again = AgentLedger(tmp_path / "attempts")
    assert again.unfinished() == [other]
    assert again.results() == [(attempt, b"bytes")]
    again.acknowledged(attempt)
    again.acknowledged(attempt)
    assert again.results() == []
    assert again.unfinished() == [other]


def test_leftovers_of_a_crash_and_strange_files_are_no_attempts(tmp_path: Path) -> None:
    folder = tmp_path / "attempts"
    AgentLedger(folder)
    for name in (".x.result.5.new", "notes.txt", "x-1.result", f"{'0' * 26}-x.accepted"):
        (folder / name).write_bytes(b"?")
    ledger = AgentLedger(folder)
    assert (ledger.results(), ledger.unfinished()) == ([], [])
    assert not (folder / ".x.result.5.new").exists()
    assert (folder / "notes.txt").exists()


def test_the_folder_is_private_and_a_failure_names_the_file(tmp_path: Path) -> None:
    ledger = AgentLedger(tmp_path / "attempts")
    assert (tmp_path / "attempts").stat().st_mode & 0o777 == 0o700
    attempt = new_attempt()
    (tmp_path / "attempts" / f"{attempt.job_id}-1.accepted").mkdir()
    with pytest.raises(ConfigurationError, match="cannot write"):
        ledger.accepted(attempt)
