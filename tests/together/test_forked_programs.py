"""A program that is forked does what the installed one does, and ends as it ends."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from support.forked_programs import nursery
from support.installation import BIN


@pytest.mark.parametrize(
    "arguments",
    [
        ["holdfast", "version"],
        ["holdfast", "--help"],
        ["holdfast", "status", "--json"],
        ["holdfast", "no-such-command"],
        ["holdfast-agent", "show"],
        ["holdfast-lab", "attached", "--state", "/nowhere"],
    ],
    ids=" ".join,
)
def test_output_and_status_are_those_of_the_installed_program(
    arguments: list[str], tmp_path: Path
) -> None:
    environment = {**os.environ, "HOLDFAST_HOME": str(tmp_path), "NO_COLOR": "1"}
    forked = nursery().run(arguments, environment=environment, seconds=60)
    installed = subprocess.run(
        [str(BIN / arguments[0]), *arguments[1:]],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (forked.returncode, forked.stdout, forked.stderr) == (
        installed.returncode,
        installed.stdout,
        installed.stderr,
    )


def test_a_forked_program_is_a_process_of_its_own_that_can_be_killed(tmp_path: Path) -> None:
    arguments = ["holdfast-lab", "run", "--state", str(tmp_path / "lab"), "--inventory", "empty"]
    with (tmp_path / "log").open("wb") as log:
        program = nursery().start(
            [*arguments, "--ready-file", str(tmp_path / "ready")],
            environment=os.environ,
            stdout=log,
            stderr=log,
        )
    with pytest.raises(subprocess.TimeoutExpired):
        program.wait(0.01)
    assert program.poll() is None
    assert os.getsid(program.pid) == program.pid
    program.kill()
    assert program.wait(30) == -signal.SIGKILL
    assert program.poll() == -signal.SIGKILL
    program.terminate()  # harmless


def test_one_that_takes_too_long_is_ended() -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        nursery().run(
            ["holdfast-lab", "run", "--state", "/nowhere/at/all"], environment=os.environ, seconds=0
        )
