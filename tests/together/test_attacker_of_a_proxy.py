"""A proxy that only backs up cannot read a byte of old content: shown by an attacker who has all of it.

A real controller and a real agent make a full backup and begin an incremental one. In the middle of it the
agent is stopped, and the attacker gets the jobs' bytes from the wire, all of the process's memory, its files,
and the repository. Old is what the repository holds and the running job did not read: what was overwritten
since the first backup, and what lies where nothing changed.
"""

from __future__ import annotations

import base64
import contextlib
import random
import signal
import sqlite3
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from support.attacker import (
    Attacker,
    canaries_in,
    memory_keys,
    new_canary,
    readable_memory,
    sheet_secret,
    windows,
)
from support.installation import Installation
from support.recording_agent import FILE_VARIABLE
from support.waiting import wait_until

MIB = 1 << 20
BLOCK = 64 * 1024
DISK_BYTES = 72 * MIB
TIMING = {"heartbeat_seconds": 4.0, "job_lease_seconds": 30.0, "reconcile_seconds": 1.0}
OVERWRITTEN, KEPT, CHANGED = range(4 * MIB), range(8 * MIB, 12 * MIB), range(16 * MIB, 72 * MIB)


def page(seed: str) -> tuple[bytes, bytes]:
    """A block's content, of which a quarter compresses, and the canary at its start."""
    canary = new_canary(seed)
    filling = random.Random(seed).randbytes(BLOCK * 3 // 4)
    return canary + filling[len(canary) :] + bytes(BLOCK // 4), canary


def write(installation: Installation, where: range, seed: str) -> set[bytes]:
    """A megabyte at a time; the canaries, one per block."""
    canaries: set[bytes] = set()
    for start in range(where.start, where.stop, MIB):
        pages = [page(f"{seed} {at}") for at in range(start, min(start + MIB, where.stop), BLOCK)]
        canaries |= {canary for _, canary in pages}
        data = base64.b64encode(b"".join(content for content, _ in pages)).decode()
        installation.control("guest-write", vm="vault", offset=start, data=data)
    return canaries


@dataclass(frozen=True)
class Scene:
    """All that an attacker of the proxy gets, and what he must not find."""

    installation: Installation
    sheet: str
    jobs: bytes
    memory: list[bytes]
    files: bytes
    memory_afterwards: list[bytes]
    overwritten: set[bytes]
    kept: set[bytes]
    read_now: set[bytes]


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("attacker")
    jobs = folder / "jobs"
    installation = Installation(
        folder / "i",
        program_prefix={"holdfast-agent": [sys.executable, "-m", "support.recording_agent"]},
        extra_environment={
            FILE_VARIABLE: str(jobs),
            "PYTHONPATH": str(Path(__file__).parents[1]),
        },
        forked=False,  # its memory is read: it is to be its own
    )
    try:
        installation.start_lab()
        disk = {"size_bytes": DISK_BYTES, "content": "zero", "seed": 1}
        machine = {"name": "vault", "datastore": "nfs1", "disks": [disk]}
        installation.control("vm-add", machine=machine)
        sheet = installation.init().json()["recovery_key"]
        installation.configure(**TIMING)
        installation.start_controller()
        installation.add_vcenter()
        installation.enrol_agent()
        installation.start_agent()
        overwritten = write(installation, OVERWRITTEN, "before")
        kept = write(installation, KEPT, "kept")
        installation.holdfast("backup", "vault", "--transport", "direct")
        read_now = write(installation, OVERWRITTEN, "after")
        read_now |= write(installation, CHANGED, "changed")
        held = _held_in_the_second_backup(installation)
        home = installation.home
        files = b"\0".join(
            path.read_bytes()
            for place in (home / "lib" / "agent", home / "etc")
            for path in sorted(place.rglob("*"))
            if path.is_file() and "operators" not in path.parts
        )
        yield Scene(
            installation=installation,
            sheet=sheet,
            jobs=jobs.read_bytes(),
            memory=held,
            memory_afterwards=_memory(installation),
            files=files,
            overwritten=overwritten,
            kept=kept,
            read_now=read_now,
        )
    finally:
        installation.stop()


def _held_in_the_second_backup(installation: Installation) -> list[bytes]:
    before = set(_files(installation))
    command = installation.in_background("backup", "vault", "--transport", "direct", "--json")
    # all of it takes some tenths of a second, and in the middle of it the agent shall stand still
    wait_until(
        lambda: _written(installation, before) > MIB,
        every_seconds=0.002,
        what="the second backup writes",
    )
    memory = _memory(installation)
    done = command.wait(120)
    assert done.status == 0, done.text
    return memory


def _memory(installation: Installation) -> list[bytes]:
    process = installation.processes["agent"]
    process.send_signal(signal.SIGSTOP)
    try:
        return readable_memory(process.pid)
    finally:
        process.send_signal(signal.SIGCONT)


def _files(installation: Installation) -> list[Path]:
    return [path for path in installation.repository.rglob("*") if path.is_file()]


def _written(installation: Installation, before: set[Path]) -> int:
    total = 0
    for path in _files(installation):
        if path not in before:
            with contextlib.suppress(FileNotFoundError):  # renamed this moment
                total += path.stat().st_size
    return total


def test_the_attacker_reads_nothing_old(scene: Scene) -> None:
    old = scene.overwritten | scene.kept
    everything = [scene.jobs, scene.files, *scene.memory]
    repository = [path.read_bytes() for path in _files(scene.installation)]
    assert not old & canaries_in([*everything, *repository])
    assert scene.read_now & canaries_in(scene.memory), (
        "of what it reads now it holds some: he looks rightly"
    )
    found = memory_keys(scene.memory)
    small = windows(scene.jobs) | windows(scene.files) | found.objects
    loot = Attacker(scene.installation.repository).attack(small, found.words, few=found.objects)
    print(
        f"{sum(map(len, scene.memory)) >> 20} MiB of memory, {len(small)} keys tried as everything,"
    )
    print(f"{len(found.words)} as segment keys: {dict(loot.by)}")
    assert not old & loot.canaries()
    # What it seals at this moment he opens with the keys that it seals with: the search does find keys.
    assert set(loot.by) == {"a segment's key"}
    assert scene.read_now & loot.canaries()


def test_an_idle_proxy_holds_nothing_at_all(scene: Scene) -> None:
    """Once the job has ended, what it read and sealed is old too."""
    found = memory_keys(scene.memory_afterwards)
    loot = Attacker(scene.installation.repository).attack(
        found.objects, found.words, few=found.objects
    )
    assert not loot.by
    assert not scene.read_now & canaries_in(scene.memory_afterwards)
    assert not (scene.overwritten | scene.kept) & canaries_in(scene.memory_afterwards)


def test_the_same_attacker_with_the_recovery_key_reads_everything(scene: Scene) -> None:
    loot = Attacker(scene.installation.repository).attack({sheet_secret(scene.sheet)}, set())
    assert scene.overwritten | scene.kept | scene.read_now <= loot.canaries()
    assert loot.by["the recipient recovery sheet"] == 1


def test_the_controller_opens_no_old_key_for_a_backup_and_notes_whom_it_opens_them_for(
    scene: Scene,
) -> None:
    """The other way to old content is to ask for it: nothing was opened for backups, and restores are noted."""
    installation = scene.installation
    assert not _opened(installation)
    point = installation.newest_point("vault")
    target = installation.restores / "vault.vmdk"
    installation.holdfast("restore", point, "disk", "0", "--to", str(target))
    entries = _opened(installation)
    assert entries
    jobs = {row["job_id"] for row in installation.holdfast("job", "list", "--json").json()["jobs"]}
    repository_id = installation.holdfast("status", "--json").json()["repository_id"]
    for actor, about, result in entries:
        assert actor.split()[1] in jobs
        assert about == repository_id
        assert result.endswith(" keys")


def _opened(installation: Installation) -> list[tuple[str, str, str]]:
    database = installation.home / "lib" / "controller" / "controller.sqlite"
    with contextlib.closing(sqlite3.connect(database)) as opened:
        rows = opened.execute(
            "SELECT actor, object, result FROM audit WHERE action = 'open segment keys'"
        )
        return [(str(row[0]), str(row[1]), str(row[2])) for row in rows]
