"""The peers of the benchmarks: the newest restic and the newest borg, each with its own repository.

`prepared_peers` builds restic from the Go module of peers/go.mod and borg from its package, once, into
build/peers. Both are used as their manuals say, encrypted, with caches of their own that start empty.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

HERE = Path(__file__).resolve().parent
MODULE = HERE / "peers"
BORG = "borgbackup==1.4.5"
BUILD_SECONDS = 1200
RUN_SECONDS = 3600
PASSWORD = "correct horse battery staple"


@dataclass
class Commands:
    """Runs a peer's commands; every different one is kept for the report."""

    environment: Mapping[str, str]
    told: dict[str, str] = field(default_factory=dict)

    def run(self, name: str, *arguments: str | Path, folder: Path | None = None) -> float:
        """Seconds. Raises: CalledProcessError, with what it wrote."""
        command = [str(each) for each in arguments]
        self.told[name] = shlex.join([Path(command[0]).name, *command[1:]])
        began = time.perf_counter()
        done = subprocess.run(
            command,
            env={**os.environ, **self.environment},
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=RUN_SECONDS,
            check=False,
        )
        seconds = time.perf_counter() - began
        if done.returncode != 0:
            raise subprocess.CalledProcessError(
                done.returncode, command, done.stdout, done.stderr[-2000:]
            )
        return seconds


class Peer(Protocol):
    """Another backup program. Each method returns the seconds of its command."""

    name: str
    commands: Commands
    repository: Path

    def first(self, image: Path) -> float: ...

    def again(self, image: Path) -> float: ...

    def restore(self, folder: Path) -> tuple[float, Path]:
        """The newest backup, and where its image is now."""
        ...

    def verify(self) -> float: ...


class Restic:
    """Content-defined chunks, its standard compression (zstd's fastest two levels), a cache of its own."""

    name = "restic"

    def __init__(self, program: Path, folder: Path) -> None:
        self.repository = folder / "restic"
        self._program = program
        password = folder / "restic-password"
        password.write_text(PASSWORD)
        self.commands = Commands(
            {
                "RESTIC_REPOSITORY": str(self.repository),
                "RESTIC_PASSWORD_FILE": str(password),
                "RESTIC_CACHE_DIR": str(folder / "restic-cache"),
            }
        )
        self.commands.run("init", program, "init")

    def first(self, image: Path) -> float:
        return self.commands.run("first", self._program, "backup", "--quiet", image)

    def again(self, image: Path) -> float:
        return self.commands.run("again", self._program, "backup", "--quiet", image)

    def restore(self, folder: Path) -> tuple[float, Path]:
        arguments = ["restore", "latest", "--quiet", "--sparse", "--target", str(folder)]
        seconds = self.commands.run("restore", self._program, *arguments)
        return seconds, _only_file(folder)

    def verify(self) -> float:
        return self.commands.run("verify", self._program, "check", "--quiet", "--read-data")


class Borg:
    """Fixed chunks of 4 MiB with zstd 3: for disk images its manual's way, and its fastest one here."""

    name = "borg"

    def __init__(self, program: Path, folder: Path) -> None:
        self.repository = folder / "borg"
        self._program = program
        self._number = 0
        self.commands = Commands(
            {
                "BORG_REPO": str(self.repository),
                "BORG_PASSPHRASE": PASSWORD,
                "BORG_BASE_DIR": str(folder / "borg-base"),
            }
        )
        self.commands.run("init", program, "init", "--encryption=repokey-blake2")

    def first(self, image: Path) -> float:
        return self._create("first", image)

    def again(self, image: Path) -> float:
        return self._create("again", image)

    def _create(self, what: str, image: Path) -> float:
        self._number += 1
        return self.commands.run(
            what,
            self._program,
            "create",
            "--sparse",
            "--chunker-params=fixed,4194304",
            "--compression=zstd,3",
            f"::backup{self._number}",
            image,
        )

    def restore(self, folder: Path) -> tuple[float, Path]:
        arguments = ["extract", "--sparse", f"::backup{self._number}"]
        seconds = self.commands.run("restore", self._program, *arguments, folder=folder)
        return seconds, _only_file(folder)

    def verify(self) -> float:
        return self.commands.run("verify", self._program, "check", "--verify-data")


def _only_file(folder: Path) -> Path:
    (found,) = [path for path in folder.rglob("*") if path.is_file()]
    return found


@dataclass(frozen=True, slots=True)
class PeerPrograms:
    """Where they are, and what they call themselves."""

    restic: Path
    borg: Path

    def versions(self) -> list[str]:
        told = [
            subprocess.run([self.restic, "version"], capture_output=True, text=True, check=True),
            subprocess.run([self.borg, "--version"], capture_output=True, text=True, check=True),
        ]
        return [done.stdout.strip() for done in told]


def prepared_peers(folder: Path) -> PeerPrograms:
    """Build what is not there yet. Raises: CalledProcessError; FileNotFoundError without Go."""
    folder.mkdir(parents=True, exist_ok=True)
    restic = folder / "restic"
    if not restic.exists():
        if shutil.which("go") is None:
            raise FileNotFoundError("go is missing: apt-get install golang")
        print("building restic", file=sys.stderr, flush=True)
        _build(["go", "build", "-o", str(restic), "github.com/restic/restic/cmd/restic"], MODULE)
    borg = folder / "borg" / "bin" / "borg"
    if not borg.exists():
        print("building borg", file=sys.stderr, flush=True)
        _build([sys.executable, "-m", "venv", str(folder / "borg")], folder)
        _build([str(folder / "borg" / "bin" / "pip"), "install", "--quiet", BORG], folder)
    return PeerPrograms(restic=restic, borg=borg)


def _build(command: Sequence[str], folder: Path) -> None:
    subprocess.run(command, cwd=folder, check=True, timeout=BUILD_SECONDS)
