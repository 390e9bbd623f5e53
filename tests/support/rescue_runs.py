"""`python3 -I rescue.py` as a person would run it: in a virtual environment that has cryptography and nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import venv
from dataclasses import dataclass
from functools import cache
from importlib.metadata import distribution
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from holdfast_common.repository import rescue

# cryptography, and what it needs itself
_PACKAGES = ("cryptography", "cffi", "pycparser")
_MEASURED = "COVERAGE_PROCESS_CONFIG"
RESCUE = Path(rescue.__file__)


@cache
def bare_python() -> Path:
    """A Python that can import the standard library and cryptography. Made once, without a network."""
    folder = Path(mkdtemp(prefix="holdfast-bare-"))
    venv.create(folder, symlinks=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    for name in _PACKAGES:
        for file in distribution(name).files or ():
            top = file.parts[0]
            link = packages / top
            if top != ".." and not link.exists():
                link.symlink_to(Path(str(distribution(name).locate_file(top))))
    if _MEASURED in os.environ:  # `make coverage` starts itself in every Python that it finds
        _add_coverage(packages)
    return folder / "bin" / "python"


def _add_coverage(packages: Path) -> None:
    """What measures, beside what is measured."""
    for name in ("coverage", "a1_coverage.pth"):
        (packages / name).symlink_to(Path(str(distribution("coverage").locate_file(name))))


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """How one run ended."""

    status: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads(self.out)
        return content


def run_rescue(
    folder: Path,
    *arguments: str,
    program: Path = RESCUE,
    python: Path | None = None,
    typed: str = "",
) -> Ran:
    """One run; ``program``: the repository's own copy, or this release's."""
    done = subprocess.run(
        [python or bare_python(), "-I", program, folder, *arguments],
        input=typed,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env={**os.environ, "LC_ALL": "C.UTF-8"},
    )
    return Ran(status=done.returncode, out=done.stdout, err=done.stderr)
