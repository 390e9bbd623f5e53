"""`holdfast repo`: the scrub works on any machine that sees the folder; the rest asks the controller."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from holdfast_common.repository.directory_store import DirectoryStore
from holdfast_controller import main
from support.repositories import BLOCK, new_repository, patterned


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with DirectoryStore.create(tmp_path / "repository") as store:
        new_repository(store).backup(patterned(3 * BLOCK, "image"))
    return tmp_path / "repository"


def test_a_scrub_of_a_whole_repository_says_so(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (*folder.rglob("*"), folder):
        path.chmod(0o500 if path.is_dir() else 0o400)  # leave to read is enough
    assert main.run(["repo", "scrub", str(folder)]) == 0
    assert "every pack is what its name says" in capsys.readouterr().out


def test_a_scrub_names_the_damaged_pack_and_what_to_do(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (pack,) = (path for path in (folder / "packs").rglob("*") if path.is_file())
    data = bytearray(pack.read_bytes())
    data[500] ^= 1
    pack.chmod(0o600)
    pack.write_bytes(data)
    assert main.run(["repo", "scrub", str(folder), "--json"]) == 13
    captured = capsys.readouterr()
    documents = [json.loads(line) for line in captured.out.splitlines()]
    assert pack.name in documents[0]["damaged"][0]["name"]
    assert "blobs hit: 0" in documents[0]["damaged"][0]["reason"]
    assert "repair --from" in captured.err


def test_a_folder_that_is_no_repository_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.run(["repo", "scrub", str(tmp_path)]) != 0
    assert "there is no repository in this directory" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        *(
            ["repo", "prune", option, value]
            for option in ("--seconds", "--move-mib")
            for value in ("0", "-1", "99999999999999999999")
        ),
        ["repo", "prune", "--grace-minutes", "-1"],
        ["repo", "prune", "--grace-minutes", "4294967296"],
        ["repo", "forget", "--keep-last", "0"],
        ["repo", "forget", "--keep-last", "-1"],
        ["repo", "forget", "--keep-last", "4294967296"],
        ["repo", "forget"],
        ["repo", "forget", "POINT", "--keep-last", "1"],
        ["repo", "forget", "POINT", "--vm", "web"],
        ["repo", "forget", "--vm", "web"],
        ["repo", "forget", "--vm", "", "--keep-last", "1"],  # a script's variable was empty
        ["repo", "forget", "--keep-last", "1", "--give-up"],
    ],
    ids=" ".join,
)
def test_what_means_nothing_or_could_mean_no_limit_is_a_usage_error(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.run(arguments) == 2
    assert "--" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["repo", "list"],
        ["repo", "show"],
        ["repo", "check"],
        ["repo", "prune", "--dry-run"],
        ["repo", "forget", "--keep-last", "3"],
        ["repo", "rebuild-catalogue"],
        ["point", "hold", "POINT"],
        ["point", "unhold", "POINT"],
        ["point", "delete", "POINT", "--yes"],
        ["repo", "check", "--read-data", "--subset", "5%"],
        ["repo", "check", "--agent", "proxy", "--detach"],
        ["repo", "repair"],
        ["repo", "repair", "--agent", "proxy", "--detach"],
        ["job", "damages", "JOB"],
    ],
)
def test_the_rest_needs_the_controller(
    capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    assert main.run([*arguments, "--json"]) == 14
    assert json.loads(capsys.readouterr().out)["code"] == "controller_unreachable"
