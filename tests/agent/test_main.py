"""The program `holdfast-agent`, from outside."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast_agent.configuration import session_address, split_address
from holdfast_agent.daemon import only_agent
from holdfast_agent.main import run
from holdfast_common.errors import UsageError
from holdfast_common.places import find_places
from support.session_rig import ControllerRig, controller_rig, patience

PROGRAM = [sys.executable, "-c", "from holdfast_agent.main import main; main()"]


@pytest.fixture(name="controller")
def listening_controller(tmp_path: Path) -> Iterator[ControllerRig]:
    with controller_rig(tmp_path / "controller") as rig:
        yield rig


@pytest.fixture(name="home")
def agent_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOLDFAST_HOME", str(tmp_path / "agent"))
    return tmp_path / "agent"


def enrol_arguments(controller: ControllerRig, tmp_path: Path) -> list[str]:
    (tmp_path / "token").write_text(controller.token() + "\n")
    return [
        "enrol",
        "--token-file",
        str(tmp_path / "token"),
        "--controller",
        f"127.0.0.1:{controller.bound.session}",
        "--host-name",
        "proxy-one",
        "--repository",
        f"01REPOSITORY={tmp_path}",
        "--datastore",
        f"ds:///vmfs/volumes/a=b/={tmp_path}",
        "--restore-folder",
        str(tmp_path),
        "--json",
    ]


def shown(capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    document = json.loads(capsys.readouterr().out)
    assert isinstance(document, dict)
    return document


def test_enrol_configure_show(
    controller: ControllerRig,
    tmp_path: Path,
    home: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(enrol_arguments(controller, tmp_path)) == 0
    enrolled = shown(capsys)
    assert enrolled["agent_id"] == controller.agents.all()[0].agent_id
    other = tmp_path / "other"
    changes = ["--datastore", f"d2={other}", "--no-repository", "01REPOSITORY"]
    assert run(["configure", *changes, "--vm-bios-uuid", "4215", "--json"]) == 0
    changed = shown(capsys)
    assert changed["datastores"] == {
        "ds:///vmfs/volumes/a=b/": str(tmp_path),
        "d2": str(other),
    }
    assert run(["show", "--json"]) == 0
    facts = shown(capsys)
    assert facts["agent_id"] == enrolled["agent_id"]
    assert facts["datastores_missing"] == ["d2"]
    assert facts["transports"] == ["direct", "file", "hotadd", "nfc"]
    assert facts["repositories"] == {}
    assert run(["show"]) == 0
    assert "datastores missing: d2" in capsys.readouterr().out
    assert (home / "etc" / "agent.toml").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["enrol", "--controller", "c"], 2, "--token"),
        (["enrol", "--controller", "c", "--token", "x"], 2, "not a join token"),
        (["enrol"], 2, "--controller"),
        (["run"], 2, "holdfast-agent enrol"),
        (["show"], 2, "no configuration"),
        (["configure"], 2, "no configuration"),
        (["dance"], 2, "dance"),
        (["configure", "--controller", "\udcff"], 2, "not UTF-8"),
    ],
)
@pytest.mark.usefixtures("home")
def test_errors_have_their_exit_status_and_say_what_to_do(
    capsys: pytest.CaptureFixture[str], arguments: list[str], status: int, said: str
) -> None:
    assert run(arguments) == status
    assert said in capsys.readouterr().err
    assert run([*arguments, "--json"]) == status
    if arguments != ["run"]:
        assert json.loads(capsys.readouterr().out)["exit_status"] == status


@pytest.mark.usefixtures("home")
def test_a_used_token_is_exit_15_and_json_tells_it_too(
    controller: ControllerRig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = enrol_arguments(controller, tmp_path)
    controller.database.execute("UPDATE join_tokens SET used_at = 'before'")
    assert run(arguments) == 15
    captured = capsys.readouterr()
    assert json.loads(captured.out)["code"] == "authentication_failed"
    assert captured.err.startswith("authentication_failed: the join token is not accepted")


def test_run_serves_until_sigterm_and_ends_cleanly(
    controller: ControllerRig, tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(enrol_arguments(controller, tmp_path)) == 0
    capsys.readouterr()
    environment = {**os.environ, "HOLDFAST_HOME": str(home)}
    with subprocess.Popen(
        [*PROGRAM, "run"], env=environment, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            patience(controller.sessions.connected)
            process.send_signal(signal.SIGTERM)
            _, log = process.communicate(timeout=20)
        finally:
            process.kill()
    assert process.returncode == 0
    assert all(json.loads(line)["level"] == "INFO" for line in log.splitlines())
    patience(lambda: not controller.sessions.connected())


def test_configure_refuses_what_cannot_be_and_names_what_is_not_there_yet(
    controller: ControllerRig, tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(enrol_arguments(controller, tmp_path)) == 0
    file = home / "etc" / "agent.toml"
    before = file.read_bytes()
    for wrong in (
        ["--controller", "foo:bar"],
        ["--controller", ""],
        ["--controller", "a b:1"],
        ["--no-restore-folder", "/nowhere"],
        ["--no-datastore", "d9"],
        ["--repository", "x"],
    ):
        assert run(["configure", *wrong]) == 2, wrong
    assert file.read_bytes() == before
    capsys.readouterr()
    assert run(["configure", "--controller", "vc.example", "--datastore", "d=/nowhere"]) == 0
    captured = capsys.readouterr()
    assert 'controller = "vc.example:9440"' in captured.out
    assert "there is no folder /nowhere yet (d)" in captured.err


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'controller = "\xff"', "wrong"),
        (b'controller = "foo:bar"', "not an address"),
        (b"x = [", "wrong"),
        (None, "Is a directory"),
    ],
)
def test_a_configuration_that_cannot_be_used_is_exit_2_without_a_traceback(
    home: Path, capsys: pytest.CaptureFixture[str], content: bytes | None, said: str
) -> None:
    file = home / "etc" / "agent.toml"
    file.parent.mkdir(parents=True)
    if content is None:
        file.mkdir()
    else:
        file.write_bytes(content)
    assert run(["show"]) == 2
    told = capsys.readouterr().err
    assert told.startswith("configuration: ")
    assert said in told
    assert "Traceback" not in told


def test_a_second_agent_in_one_home_is_exit_11_and_leaves_the_first_alone(
    controller: ControllerRig, tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(enrol_arguments(controller, tmp_path)) == 0
    capsys.readouterr()
    environment = {**os.environ, "HOLDFAST_HOME": str(home)}
    with subprocess.Popen([*PROGRAM, "run"], env=environment, stderr=subprocess.DEVNULL) as process:
        try:
            patience(controller.sessions.connected)
            second = subprocess.run(
                [*PROGRAM, "run"],
                env=environment,
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
            assert second.returncode == 11
            assert second.stderr.startswith("locked: this agent runs here already")
            assert len(controller.sessions.connected()) == 1
            assert process.poll() is None
        finally:
            process.kill()
    with only_agent(find_places({"HOLDFAST_HOME": str(home)})):
        pass  # a killed agent holds nothing


def test_nothing_that_only_proxies_need_is_imported_before_the_first_job() -> None:
    code = (
        "import sys, holdfast_agent.main\n"
        "heavy = {'numpy', 'zstandard', 'blake3'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("c", ("c", 0)),
        ("c.example:9440", ("c.example", 9440)),
        ("[::1]:9440", ("::1", 9440)),
        ("::1", ("::1", 0)),
        ("[::1]", ("::1", 0)),
        ("10.0.0.1:1", ("10.0.0.1", 1)),
    ],
)
def test_addresses_are_split(text: str, parts: tuple[str, int]) -> None:
    assert split_address(text) == parts


def test_the_usual_port_is_dialled_when_none_is_given() -> None:
    assert session_address("::1") == "[::1]:9440"
    assert session_address("c:1") == "c:1"


@pytest.mark.parametrize("text", ["", ":1", "c:", "c:x", "c:99999"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        split_address(text)
