"""Builds what judges us: govmomi's simulator, stock govc, and a small govmomi client.

From the pinned modules through Go's module proxy; where there is none, from Debian's package of
govmomi (older, without govc). Everything lands in ``build/referee``.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

SOURCE: Final = Path(__file__).parent / "go"
BUILD: Final = Path(__file__).parents[2] / "build" / "referee"
DEBIAN_GOPATH: Final = Path("/usr/share/gocode")
DEBIAN_PACKAGES: Final = ("golang-github-vmware-govmomi-dev", "golang-github-google-uuid-dev")
BUILD_SECONDS_MAX: Final = 1200
SIMULATOR, STOCK, CLIENT = "vcsim", "govc", "client"


class NoReferee(Exception):
    """Nothing here can judge: no Go, or neither modules nor Debian's package."""


@dataclass(frozen=True, kw_only=True)
class Referees:
    """The programs. ``govc`` is None where only Debian's package was to be had."""

    origin: str
    vcsim: Path
    client: Path
    govc: Path | None


def build_referees() -> Referees:
    """Build what can be built. Raises: NoReferee with everything that is missing."""
    go = shutil.which("go") or shutil.which("go", path="/usr/local/go/bin:/usr/lib/go/bin")
    if go is None:
        raise NoReferee("Go is not installed: apt-get install golang-go, or Go 1.25 or newer")
    problems = []
    folder = BUILD / "modules"
    problem = _build(go, folder, {}, (SIMULATOR, STOCK, CLIENT))
    if not problem:
        return Referees(
            origin=f"govmomi {_pinned_version()} (Go modules)",
            vcsim=folder / SIMULATOR,
            client=folder / CLIENT,
            govc=folder / STOCK,
        )
    problems.append(f"through Go modules: {problem}")
    folder = BUILD / "debian"
    gopath = _debian_sources()
    if gopath is None:
        problems.append(f"Debian's {DEBIAN_PACKAGES[0]} is not installed and cannot be fetched")
        raise NoReferee("; ".join(problems))
    old_ways = {"GO111MODULE": "off", "GOPATH": str(gopath), "GOFLAGS": ""}
    problem = _build(go, folder, old_ways, (SIMULATOR, CLIENT))
    if problem:
        problems.append(f"from Debian's package: {problem}")
        raise NoReferee("; ".join(problems))
    return Referees(
        origin=f"govmomi of Debian's {DEBIAN_PACKAGES[0]}",
        vcsim=folder / SIMULATOR,
        client=folder / CLIENT,
        govc=None,
    )


def _build(go: str, folder: Path, variables: Mapping[str, str], programs: tuple[str, ...]) -> str:
    """Build each program; the end of what Go said when one fails, empty when all are there."""
    folder.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "GOTOOLCHAIN": "local", **variables}
    for program in programs:
        try:
            done = subprocess.run(
                [go, "build", "-o", str(folder / program), f"./{program}"],
                cwd=SOURCE,
                env=environment,
                capture_output=True,
                text=True,
                check=False,
                timeout=BUILD_SECONDS_MAX,
                stdin=subprocess.DEVNULL,
            )
        except subprocess.TimeoutExpired:
            return f"{program} was not built within {BUILD_SECONDS_MAX} s"
        if done.returncode != 0:
            lines = [line for line in done.stderr.splitlines() if "downloading" not in line]
            return f"{program}: {' / '.join(lines)[-300:]}"
    return ""


def _pinned_version() -> str:
    for line in (SOURCE / "go.mod").read_text(encoding="utf-8").splitlines():
        words = line.replace("require ", "").split()
        if len(words) >= 2 and words[0] == "github.com/vmware/govmomi":
            return words[1]
    return "of an unknown version"


def _debian_sources() -> Path | None:
    """A GOPATH with Debian's govmomi: installed, or unpacked without being installed."""
    if (DEBIAN_GOPATH / "src/github.com/vmware/govmomi").is_dir():
        return DEBIAN_GOPATH
    packages = BUILD / "packages"
    unpacked = packages / "unpacked"
    gopath = unpacked / "usr/share/gocode"
    if (gopath / "src/github.com/vmware/govmomi").is_dir():
        return gopath
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        return None
    packages.mkdir(parents=True, exist_ok=True)
    fetched = _quietly(["apt-get", "download", *DEBIAN_PACKAGES], packages)
    archives = sorted(packages.glob("*.deb"))
    if not fetched or len(archives) < len(DEBIAN_PACKAGES):
        return None
    unpacking = (["dpkg-deb", "-x", str(archive), str(unpacked)] for archive in archives)
    return gopath if all(_quietly(command, packages) for command in unpacking) else None


def _quietly(command: list[str], folder: Path) -> bool:
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            capture_output=True,
            check=False,
            timeout=BUILD_SECONDS_MAX,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0
