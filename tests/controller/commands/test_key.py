"""`holdfast key`: every kind of recipient comes, opens, and goes; over a real controller, in this process."""

from __future__ import annotations

import contextlib
import io
import json
import sqlite3
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from click.testing import CliRunner

from holdfast_common.places import HOME_VARIABLE, find_places
from holdfast_common.repository.recovery_sheet import RecoverySheet
from holdfast_controller import main
from holdfast_controller.store import settings as names
from support.installation import Done, Installation

REFUSED, WRONG_KEY, USAGE = 15, 12, 2


@dataclass
class Desk:
    """A controller, and the command line in this process: a tenth of the time of a program of its own."""

    installation: Installation
    sheet: str
    folder: Path

    def key(self, *arguments: str, expect: int = 0) -> Done:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = main.run(["key", *arguments])
        done = Done(status=status, stdout=out.getvalue(), stderr=err.getvalue())
        assert status == expect, f"{arguments}: {status}\n{done.text}"
        return done

    def listed(self) -> dict[str, Any]:
        found: dict[str, Any] = self.key("list", "--json").json()
        return found

    def labels(self) -> list[str]:
        return [row["label"] for row in self.listed()["recipients"]]

    def stored_keys(self) -> dict[str, bytes]:
        folder = self.installation.repository / "keys"
        return {path.name: path.read_bytes() for path in folder.iterdir()}

    def file(self, name: str, text: str) -> str:
        path = self.folder / name
        path.write_text(text)
        return str(path)


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    folder = tmp_path_factory.mktemp("keys")
    installation = Installation(folder / "i")
    patch = pytest.MonkeyPatch()
    try:
        sheet = installation.init().json()["recovery_key"]
        installation.start_controller()
        patch.setenv(HOME_VARIABLE, str(installation.home))
        yield Desk(installation, sheet, folder)
    finally:
        patch.undo()
        installation.stop()


def test_part_of_the_sheet_is_typed_back_unseen_or_from_standard_input_never_as_an_argument(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups = RecoverySheet.parse(desk.sheet).key_text().split()
    database = find_places({HOME_VARIABLE: str(desk.installation.home)}).database
    with contextlib.closing(sqlite3.connect(database)) as opened:
        (challenge,) = opened.execute(
            "SELECT value FROM settings WHERE name = ?", (names.SHEET_CHALLENGE,)
        ).fetchone()
    typed = " ".join(groups[number - 1] for number in json.loads(challenge)["numbers"])
    desk.key("recovery", "--typed", typed, expect=USAGE)
    desk.key("recovery", "--groups-file", desk.file("groups", typed + "\n"))
    desk.key("recovery", "--groups-file", desk.file("empty", ""), expect=USAGE)
    desk.key("recovery", "--groups-file", desk.file("swapped", typed[::-1]), expect=WRONG_KEY)
    for text, status in ((typed, 0), (groups[0], WRONG_KEY)):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode() + b"\n")))
        desk.key("recovery", "--groups-file", "-", expect=status)
    asked = Mock(return_value=typed)
    monkeypatch.setattr("click.prompt", asked)
    assert desk.key("recovery", "--json").json()["confirmed"] is True
    asked.assert_called_once_with("Groups of the recovery sheet", hide_input=True, err=True)


def test_a_new_installation_has_the_controller_and_a_sheet(desk: Desk) -> None:
    found = desk.listed()
    kinds = {row["kind"]: row["controller"] for row in found["recipients"]}
    assert kinds == {"key-file": True, "recovery-sheet": False}
    assert "key_object" not in found
    assert "the controller itself" in desk.key("list").stdout


def opens(desk: Desk, *secret: str, expect: int = 0) -> None:
    """With the controller's help, and on a machine that has only the repository."""
    for where in ((), ("--repository", str(desk.installation.repository))):
        desk.key("test", *secret, *where, expect=expect)


def test_each_kind_of_recipient_comes_opens_and_goes(desk: Desk) -> None:
    passphrase = desk.file("passphrase", "a long enough passphrase\n")
    key_file, private = desk.folder / "vault.key", desk.folder / "pair.private"
    public = desk.key("new-pair", "--private-key-file", str(private)).stdout.strip()
    kinds: dict[str, tuple[list[str], list[str]]] = {
        "passphrase": (["--passphrase-file", passphrase], ["--passphrase-file", passphrase]),
        "key-file": (["--new-key-file", str(key_file)], ["--key-file", str(key_file)]),
        "public-key": (["--public-key", public], ["--private-key-file", str(private)]),
    }
    for kind, (how, secret) in kinds.items():
        if kind != "key-file":
            opens(desk, *secret, expect=WRONG_KEY)
        added = desk.key("add", kind, "--label", f"new {kind}", *how, "--yes", "--json").json()
        assert added["done"]
        assert added["recipient"]["label"] == f"new {kind}"
        opens(desk, *secret)
    before = desk.listed()
    for kind, (_, secret) in kinds.items():
        removed = desk.key("remove", f"new {kind}", "--yes", "--json").json()
        assert removed["recipient"]["kind"] == kind
        opens(desk, *secret, expect=WRONG_KEY)
    after = desk.listed()
    assert desk.labels() == ["controller", "recovery sheet"]
    assert after["epoch"] == before["epoch"] + 3
    assert after["authority"] != before["authority"]
    assert len(desk.stored_keys()) == 2  # nothing of before is left to be opened
    for path in (key_file, private):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert private.read_bytes().strip() not in b"".join(
        each.read_bytes() for each in desk.installation.home.rglob("*") if each.is_file()
    )


def test_a_new_sheet_takes_the_old_ones_place(desk: Desk) -> None:
    first = desk.file("first", desk.sheet)
    opens(desk, "--recovery-key-file", first)
    text = desk.folder / "sheet.txt"
    desk.key(
        "add", "recovery-sheet", "--label", "second sheet",
        "--recovery-sheet", str(text), "--accept-recovery-sheet", "--yes",
    )  # fmt: skip
    assert stat.S_IMODE(text.stat().st_mode) == 0o600
    opens(desk, "--recovery-key-file", str(text))  # the whole text of the sheet
    desk.key("remove", "recovery sheet", "--yes")
    opens(desk, "--recovery-key-file", first, expect=WRONG_KEY)
    opens(desk, "--recovery-key-file", str(text))
    told = desk.key("remove", "second sheet", "--yes", expect=REFUSED).stderr
    assert "last recovery sheet" in told
    desk.key("remove", "second sheet", "--leave-no-recovery-sheet", "--yes")
    assert desk.labels() == ["controller"]
    made = desk.key("add", "recovery-sheet", "--accept-recovery-sheet", "--yes", "--json").json()
    RecoverySheet.parse(made["recovery_key"])
    opens(desk, "--recovery-key-file", desk.file("third", made["recovery_key"]))


def test_a_dry_run_says_what_would_be_and_changes_nothing(desk: Desk) -> None:
    before = desk.stored_keys()
    new = desk.folder / "never.key"
    (sheet,) = [row for row in desk.listed()["recipients"] if row["kind"] == "recovery-sheet"]
    for arguments in (
        ["add", "key-file", "--new-key-file", str(new), "--dry-run"],
        ["rotate", "--renew-controller-key", "--dry-run"],
        ["remove", sheet["recipient_id"], "--leave-no-recovery-sheet", "--dry-run"],
    ):
        assert "this was a dry run" in desk.key(*arguments).stdout
        assert not desk.key(*arguments, "--json").json()["done"]
    desk.key("remove", sheet["recipient_id"], "--dry-run", expect=REFUSED)  # the same checks
    assert desk.stored_keys() == before
    assert not new.exists()


def test_what_must_not_be_is_refused(desk: Desk) -> None:
    before = desk.stored_keys()
    own = next(row for row in desk.listed()["recipients"] if row["controller"])
    assert (
        "renew-controller-key"
        in desk.key("remove", own["recipient_id"], "--yes", expect=REFUSED).stderr
    )
    short = desk.file("short", "too short\n")
    desk.key("add", "passphrase", "--passphrase-file", short, "--yes", expect=USAGE)
    empty = desk.file("empty", "")
    desk.key("add", "passphrase", "--passphrase-file", empty, "--yes", expect=USAGE)
    desk.key("add", "passphrase", "--passphrase", "in the command line", "--yes", expect=USAGE)
    desk.key("add", "key-file", "--yes", expect=USAGE)
    desk.key("add", "key-file", "--new-key-file", short, "--yes", expect=REFUSED)
    desk.key("add", "public-key", "--yes", expect=USAGE)
    desk.key("add", "public-key", "--public-key", "holdfast-public-1:00", "--yes", expect=WRONG_KEY)
    desk.key("add", "public-key", "--key-file", short, "--yes", expect=USAGE)
    desk.key("add", "recovery-sheet", "--yes", "--json", expect=USAGE)
    desk.key("new-pair", "--private-key-file", short, expect=REFUSED)
    desk.key("test", expect=USAGE)
    desk.key("test", "--key-file", short, "--passphrase-file", short, expect=USAGE)
    desk.key("remove", "nobody", "--yes", expect=1)
    label = desk.labels()[0]
    new = desk.folder / "twin.key"
    desk.key(
        "add", "key-file", "--new-key-file", str(new), "--label", label, "--yes", expect=REFUSED
    )
    assert not new.exists()
    assert desk.stored_keys() == before


def test_without_yes_it_asks_and_no_is_no(desk: Desk) -> None:
    before = desk.stored_keys()
    for arguments in (["rotate"], ["add", "passphrase"]):
        answers = "n\n" if arguments == ["rotate"] else "a good long passphrase\n" * 2 + "n\n"
        done = CliRunner().invoke(main.holdfast, ["key", *arguments], input=answers)
        assert done.exit_code == 1, done.output
        assert "[y/N]" in done.output
        assert "a good long passphrase" not in done.output
    assert desk.stored_keys() == before


def test_help_says_what_each_command_does_not_protect(desk: Desk) -> None:
    for command in ("add", "remove", "rotate"):
        text = desk.key(command, "--help").stdout
        assert "Protects:" in text
        assert "Does not protect:" in text
        assert "\\b" not in text


def test_the_controllers_own_key_is_renewed(desk: Desk) -> None:
    keeper_folder = desk.installation.home / "lib" / "controller" / "keys"
    (path,) = keeper_folder.iterdir()
    copied = desk.file("copied.key", path.read_text())
    opens(desk, "--key-file", copied)
    desk.key("rotate", "--renew-controller-key", "--yes")
    assert [each.name for each in keeper_folder.iterdir()] == [path.name]
    assert path.read_text() != Path(copied).read_text()
    opens(desk, "--key-file", copied, expect=WRONG_KEY)
    desk.installation.kill("controller")
    desk.installation.start_controller()
    assert [row["controller"] for row in desk.listed()["recipients"]].count(True) == 1


def test_every_change_is_audited_and_names_no_secret(desk: Desk) -> None:
    sheet = ("recovery-sheet", "--label", "audited", "--accept-recovery-sheet")
    desk.key("add", *sheet, "--yes", "--json")
    desk.key("remove", "audited", "--yes")
    desk.key("rotate", "--yes")
    database = desk.installation.home / "lib" / "controller" / "controller.sqlite"
    with contextlib.closing(sqlite3.connect(database)) as opened:
        rows = opened.execute("SELECT action, object, result FROM audit").fetchall()
    actions = {row[0] for row in rows}
    assert {"add a recipient", "remove a recipient", "rotate the keys"} <= actions
    text = json.dumps(rows)
    assert desk.listed()["repository_id"] in text
    assert "holdfast-key-1" not in text


def test_a_stranger_in_the_folder_cannot_change_what_the_controller_takes(desk: Desk) -> None:
    """Whole forged generations are in the tests of `key_changes`; here: an older one put back is told."""
    folder = desk.installation.repository / "keys"
    before = desk.stored_keys()
    desk.key("rotate", "--yes")
    for path in folder.iterdir():
        path.unlink()
    for name, data in before.items():
        (folder / name).write_bytes(data)
    desk.installation.kill("controller")
    desk.installation.start_controller()
    assert "older than they were" in desk.key("list", expect=13).stderr
