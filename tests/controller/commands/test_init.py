import io
import json
import stat
from pathlib import Path

import pytest

from holdfast_common.places import HOME_VARIABLE
from holdfast_controller import main


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "home"))
    return tmp_path / "home"


def init(*arguments: str) -> int:
    return main.run(["init", *arguments])


def test_init_makes_everything_and_its_secrets_are_private(
    own_home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert init("--repository", str(tmp_path / "r"), "--accept-recovery-sheet", "--json") == 0
    made = json.loads(capsys.readouterr().out)
    assert len(made["recovery_key"].split()) == 9
    for name in ("secrets.key", f"keys/{made['repository_id']}.key", "controller.sqlite"):
        mode = (own_home / "lib" / "controller" / name).stat().st_mode
        assert stat.S_IMODE(mode) == 0o600, name
    everything = b"".join(path.read_bytes() for path in own_home.rglob("*") if path.is_file())
    assert made["recovery_key"].replace(" ", "").encode() not in everything.replace(b" ", b"")


def test_a_second_init_changes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert init("--repository", str(tmp_path / "r"), "--accept-recovery-sheet") == 0
    assert init("--repository", str(tmp_path / "other"), "--accept-recovery-sheet") == 15
    assert "set up here already" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_a_folder_with_something_in_it_is_refused_and_nothing_is_made(
    own_home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "letter.txt").write_text("mine")
    assert init("--repository", str(taken), "--accept-recovery-sheet") == 15
    assert "not empty" in capsys.readouterr().err
    assert [path.name for path in taken.iterdir()] == ["letter.txt"]
    assert init("--repository", str(tmp_path / "r"), "--accept-recovery-sheet") == 0


def test_a_sheet_that_nobody_types_back_is_no_success(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    status = init("--repository", str(tmp_path / "r"))
    assert status == 130  # standard input is empty: nothing was typed
    assert "Type back" in capsys.readouterr().err


def test_the_sheet_goes_to_a_private_new_file_when_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sheet = tmp_path / "sheet.txt"
    assert (
        init(
            "--repository",
            str(tmp_path / "r"),
            "--recovery-sheet",
            str(sheet),
            "--accept-recovery-sheet",
        )
        == 0
    )
    assert "RECOVERY SHEET" in sheet.read_text()
    assert stat.S_IMODE(sheet.stat().st_mode) == 0o600
    assert "RECOVERY SHEET" not in capsys.readouterr().out
