"""The units in deploy/systemd, judged by systemd's own tools, with our programs where the units look for them."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from holdfast_common.places import Places

UNITS = Path(__file__).parents[2] / "deploy" / "systemd"
ROOTS_PLACES = Places(
    configuration=Path("/etc/holdfast"),
    state=Path("/var/lib/holdfast"),
    run=Path("/run/holdfast"),
)
EXPOSURE_MAX = {"holdfast-controller": 1.5, "holdfast-agent": 3.0}  # of 10, as systemd rates it

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None,
    reason="systemd-analyze is missing: the Debian package systemd has it",
)


@needs_systemd
@pytest.mark.parametrize("name", EXPOSURE_MAX)
def test_systemd_finds_nothing_wrong_with_a_unit(tmp_path: Path, name: str) -> None:
    text = (UNITS / f"{name}.service").read_text()
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    changed = re.sub(r"(?m)^ExecStart=\S+", f"ExecStart={program}", text)
    assert changed != text
    (tmp_path / f"{name}.service").write_text(changed)
    found = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(tmp_path / f"{name}.service")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    told = [line for line in (found.stdout + found.stderr).splitlines() if name in line]
    assert found.returncode == 0, found.stderr
    assert told == []


@needs_systemd
@pytest.mark.parametrize(("name", "exposure_max"), EXPOSURE_MAX.items())
def test_a_unit_is_as_closed_as_we_say(name: str, exposure_max: float) -> None:
    found = subprocess.run(
        [
            "systemd-analyze",
            "security",
            "--offline=true",
            "--no-pager",
            f"--threshold={round(exposure_max * 10)}",
            str(UNITS / f"{name}.service"),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    rated = re.search(r"Overall exposure level for \S+: ([\d.]+)", found.stdout)
    assert rated is not None, found.stdout + found.stderr
    assert found.returncode == 0, rated[0]
    assert float(rated[1]) <= exposure_max


@pytest.mark.parametrize("name", EXPOSURE_MAX)
def test_a_unit_waits_for_what_the_daemons_tell(name: str) -> None:
    lines = (UNITS / f"{name}.service").read_text().splitlines()
    assert "Type=notify" in lines
    assert any(line.startswith("WatchdogSec=") for line in lines)
    assert "Restart=always" in lines
    assert "LimitCORE=0" in lines  # keys are in its memory


def test_no_unit_takes_the_folders_of_the_other() -> None:
    """Both may run on one machine, as different users: systemd gives a state folder to its unit's user."""
    states = {
        name: re.findall(r"(?m)^StateDirectory=(.*)$", (UNITS / f"{name}.service").read_text())
        for name in EXPOSURE_MAX
    }
    assert states == {
        "holdfast-controller": ["holdfast/controller"],
        "holdfast-agent": ["holdfast/agent"],
    }
    assert "RuntimeDirectory=" not in (UNITS / "holdfast-agent.service").read_text()
    environment = dict(
        pair.split("=")
        for line in (UNITS / "holdfast-controller.service").read_text().splitlines()
        if line.startswith("Environment=")
        for pair in line.removeprefix("Environment=").split()
    )
    places = Places(
        configuration=Path(environment["XDG_CONFIG_HOME"]) / "holdfast",
        state=Path(environment["XDG_STATE_HOME"]) / "holdfast",
        run=Path(environment["XDG_RUNTIME_DIR"]) / "holdfast",
    )
    assert places == ROOTS_PLACES
    assert places.controller_state == Path("/var/lib/holdfast/controller")
    assert places.agent_state == Path("/var/lib/holdfast/agent")
