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


def made_nothing(home: Path) -> bool:
    return not any(path.is_file() for path in home.rglob("*"))


def test_a_repository_below_a_folder_that_is_not_there_is_exit_2_and_nothing_is_made(
    own_home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert init("--repository", str(tmp_path / "no" / "r"), "--accept-recovery-sheet") == 2
    assert "the folder above it does not exist" in capsys.readouterr().err
    assert made_nothing(own_home)
    in_a_file = tmp_path / "file"
    in_a_file.write_text("")
    assert init("--repository", str(in_a_file / "r"), "--accept-recovery-sheet") == 2
    assert made_nothing(own_home)
    sheet = ["--recovery-sheet", str(tmp_path / "no" / "sheet")]
    assert init("--repository", str(tmp_path / "r"), *sheet, "--accept-recovery-sheet") == 2
    assert made_nothing(own_home)
    assert init("--accept-recovery-sheet") == 0, "nothing is in the way"


@pytest.mark.parametrize(
    "address",
    ["foo:bar", "foo", "", ":9440", "0.0.0.0:99999", "0.0.0.0:-1", "1.2.3:5", "[::1:9440", "a b:1"],
)
@pytest.mark.parametrize("option", ["--session-address", "--enrolment-address"])
def test_an_address_that_nobody_can_listen_at_is_exit_2_and_nothing_is_made(
    own_home: Path, capsys: pytest.CaptureFixture[str], option: str, address: str
) -> None:
    assert init(option, address, "--accept-recovery-sheet") == 2
    assert "is not an address" in capsys.readouterr().err
    assert made_nothing(own_home)


@pytest.mark.parametrize("address", ["[::]:9440", "holdfast.example:9440", "127.0.0.1:0"])
def test_usual_addresses_are_taken(address: str) -> None:
    assert init("--session-address", address, "--accept-recovery-sheet") == 0


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('session_address = "foo:bar"', "session_address is not an address"),
        ('advertised_address = "holdfast.example:0"', "advertised_address is not"),
        ("jobs_at_once_max = 0", "jobs_at_once_max"),
        ("reconcile_seconds = -1.0", "reconcile_seconds"),
        ("colour = 1", "colour"),
    ],
)
def test_a_wrong_configuration_is_named_before_anything_runs(
    own_home: Path, capsys: pytest.CaptureFixture[str], line: str, said: str
) -> None:
    assert init("--accept-recovery-sheet") == 0
    file = own_home / "etc" / "controller.toml"
    name = line.partition(" ")[0]
    kept = [each for each in file.read_text().splitlines() if not each.startswith(name)]
    file.write_text("\n".join([line, *kept]))
    capsys.readouterr()
    assert main.run(["controller", "run"]) == 2
    told = capsys.readouterr().err
    assert told.startswith("configuration: ")
    assert said in told
    assert "controller.toml" in told


@pytest.mark.parametrize("empty", [False, True])
def test_a_controller_whose_database_is_gone_makes_no_new_one(
    own_home: Path, capsys: pytest.CaptureFixture[str], empty: bool
) -> None:
    assert init("--accept-recovery-sheet") == 0
    database = own_home / "lib" / "controller" / "controller.sqlite"
    database.unlink()
    if empty:
        database.touch()
    capsys.readouterr()
    assert main.run(["controller", "run"]) == 2
    assert "database is gone" in capsys.readouterr().err
    assert not empty or database.stat().st_size == 0
    assert empty or not database.exists()
