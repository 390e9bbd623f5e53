"""Errors as scripts see them: the exit code, and with ``--json`` always a document on stdout."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from holdfast_common.places import HOME_VARIABLE
from holdfast_controller import main


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "home"))


@pytest.mark.parametrize(
    "arguments",
    [
        ["agent", "token", "--json"],
        ["agent", "token", "--host-name", "p", "--minutes", "-5", "--json"],
        ["agent", "token", "--host-name", "p", "--minutes", "0", "--json"],
        ["job", "list", "--limit", "-1", "--json"],
        ["backup", "--json"],
        ["backup", "web", "--level", "huge", "--json"],
        ["dance", "--json"],
        ["backup", "\udcff", "--json"],
        ["restore", "P", "disk", "99999999999", "--to", "/x.vmdk", "--json"],
        ["restore", "P", "vm", "--name", "x", "--disk", "99999999999=nfs1", "--json"],
        ["restore", "P", "vm", "--name", "x", "--disk", "²=nfs1", "--json"],
        ["restore", "P", "vm", "--name", "x", "--disk", "9" * 5000 + "=nfs1", "--json"],
        ["vcenter", "add", "x", "--name", "a", "--user", "u", "--password-file", "/no", "--json"],
    ],
)
def test_a_wrong_command_is_exit_2_and_a_document(
    capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    assert main.run(arguments) == 2
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert (document["type"], document["code"], document["exit_status"]) == ("error", "usage", 2)
    assert document["message"] in captured.err
    assert "Traceback" not in captured.err


def test_without_json_a_wrong_command_prints_nothing_on_stdout(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main.run(["agent", "token", "--minutes", "-5"]) == 2
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "arguments",
    [
        ["status"],
        ["doctor"],
        ["check"],
        ["agent", "list"],
        ["job", "list"],
        ["point", "list"],
        ["vcenter", "list"],
        ["inventory", "list"],
        ["backup", "web"],
        ["job", "follow", "x"],
    ],
)
def test_without_a_controller_everything_is_exit_14_and_a_document(
    capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    assert main.run([*arguments, "--json"]) == 14
    captured = capsys.readouterr()
    assert json.loads(captured.out)["code"] == "controller_unreachable"
    assert "holdfast controller run" in captured.err


def test_an_unanswered_question_is_exit_130_and_a_document(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert main.run(["agent", "revoke", "a1", "--json"]) == 130
    assert json.loads(capsys.readouterr().out)["code"] == "interrupted"
