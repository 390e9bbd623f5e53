"""What the crash states are made of is what the production store really asks of the operating system."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support.crash_rig import ROOT
from support.crash_workloads import WORKLOADS, recording
from support.recorded_files import Call
from support.recorded_program import BEGIN, row
from support.straced import TRACED, changes

SECONDS_MAX = 120.0
SYNCS = {Call.SYNC_FILE: "sync", Call.SYNC_DIRECTORY: "sync"}


@pytest.mark.skipif(
    shutil.which("strace") is None, reason="needs strace (deploy/setup-machine test)"
)
@pytest.mark.parametrize("name", sorted(WORKLOADS))
def test_the_record_is_what_strace_sees_and_what_a_disk_in_memory_is_asked(
    name: str, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    root = disk / "repository"
    trace = tmp_path / "trace"
    command = ["strace", "-f", "-y", "-s", "256", "-o", str(trace), "-e", f"trace={TRACED}"]
    program = [sys.executable, "-m", "support.recorded_program", name, str(root)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [*command, *program],
        env=environment,
        capture_output=True,
        text=True,
        timeout=SECONDS_MAX,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    calls = [each for each in rows if each[0] != Call.MARK]
    assert len(calls) > 30
    seen = list(changes(trace.read_text().splitlines(), below=disk, after=BEGIN))
    assert [told(each, disk) for each in calls] == seen
    assert rows == [row(call, ROOT) for call in recording(name).log]


def told(each: list[str], disk: Path) -> tuple[str, ...]:
    """A row in the words of `straced`."""
    call, offset, length, _, *below = each
    places = [f"{disk}{path}".rstrip("/") for path in below]
    if call in (Call.WRITE, Call.PWRITE):
        position = [str(offset)] if call == Call.PWRITE else []
        return (call, *places, *position, str(length))
    return (SYNCS.get(Call(call), call), *places)
