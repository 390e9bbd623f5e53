"""`holdfast repo init`: makes the one repository of a controller, once, and never over anything."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from holdfast_common.clock import SystemClock
from holdfast_common.places import HOME_VARIABLE, Places, find_places
from holdfast_common.repository.directory_store import DirectoryStore
from holdfast_common.repository.keys import create_repository
from holdfast_controller import main
from holdfast_controller.store import settings as names
from holdfast_controller.store.schema import open_database
from holdfast_controller.store.settings import Settings


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Places:
    home = str(tmp_path / "home")
    monkeypatch.setenv(HOME_VARIABLE, home)
    return find_places({HOME_VARIABLE: home})


def setting(places: Places, name: str) -> str:
    database = open_database(places.database)
    try:
        return Settings(database).get(name)
    finally:
        database.close()


def init(folder: Path, *arguments: str) -> int:
    return main.run(["repo", "init", str(folder), *arguments])


def test_a_controller_without_a_repository_gets_one_and_only_one(
    places: Places, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.run(["init", "--no-repository"]) == 0
    assert "holdfast repo init" in capsys.readouterr().err
    assert not setting(places, names.REPOSITORY_ID)
    folder, sheet = tmp_path / "r", tmp_path / "sheet.txt"
    assert init(folder, "--dry-run", "--json") == 0
    planned = json.loads(capsys.readouterr().out)
    assert (planned["type"], planned["done"]) == ("plan", False)
    assert not folder.exists(), "a dry run"
    assert init(folder, "--recovery-sheet", str(sheet), "--accept-recovery-sheet", "--json") == 0
    captured = capsys.readouterr()
    made = json.loads(captured.out)
    assert made["repository_id"] == setting(places, names.REPOSITORY_ID)
    assert setting(places, names.REPOSITORY_FOLDER) == str(folder)
    assert setting(places, names.SHEET_CONFIRMED_AT)
    assert "RECOVERY SHEET" in sheet.read_text()
    assert f"holdfast-agent configure --repository {made['repository_id']}=" in captured.err
    before = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    for again in (folder, tmp_path / "other"):
        assert init(again, "--accept-recovery-sheet") == 15
    told = capsys.readouterr().err
    assert "this repository exists already" in told
    assert "can have only one" in told
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == before


def test_a_folder_with_a_repository_or_anything_else_in_it_is_left_alone(
    places: Places, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.run(["init", "--no-repository"]) == 0
    assert init(tmp_path / "r", "--accept-recovery-sheet", "--json") == 0
    repository_id = json.loads(capsys.readouterr().out)["repository_id"]
    other = ["--home", str(tmp_path / "other-home")]
    assert main.run([*other, "init", "--no-repository"]) == 0
    assert main.run([*other, "repo", "init", str(tmp_path / "r"), "--accept-recovery-sheet"]) == 15
    assert f"holds a repository already, {repository_id}" in capsys.readouterr().err
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "letter.txt").write_text("mine")
    assert main.run([*other, "repo", "init", str(tmp_path / "taken"), "--dry-run"]) == 15
    assert [path.name for path in (tmp_path / "taken").iterdir()] == ["letter.txt"]
    assert main.run([*other, "repo", "init", str(tmp_path / "no" / "r"), "--dry-run"]) == 2


def test_what_an_interrupted_set_up_left_may_be_emptied_and_only_that(
    places: Places, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.run(["init", "--no-repository"]) == 0
    folder = tmp_path / "r"
    with DirectoryStore.create(folder) as store:
        keys, _ = create_repository(store, recipients=(), clock=SystemClock())
    assert init(folder, "--accept-recovery-sheet") == 15
    told = capsys.readouterr().err
    assert f"holds a repository already, {keys.repository_id}" in told
    assert "nothing was ever stored in it" in told
    with DirectoryStore.open(folder) as store:
        keys.authorise_writer(store, bytes(32), agent_id="proxy", clock=SystemClock())
    assert init(folder, "--accept-recovery-sheet") == 15
    told = capsys.readouterr().err
    assert "nothing was ever stored in it" not in told
    assert "choose an empty folder" in told


def test_before_init_there_is_no_controller_to_give_it_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert init(tmp_path / "r", "--accept-recovery-sheet") == 2
    assert "run `holdfast init`" in capsys.readouterr().err
    assert not (tmp_path / "r").exists()
    assert main.run(["init", "--no-repository", "--repository", str(tmp_path / "r")]) == 2


def test_a_lost_database_is_not_made_anew_by_it(
    places: Places, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.run(["init", "--no-repository"]) == 0
    places.database.unlink()
    assert init(tmp_path / "r", "--accept-recovery-sheet") == 2
    assert "database is gone" in capsys.readouterr().err
    assert not places.database.exists()
    assert not (tmp_path / "r").exists()
