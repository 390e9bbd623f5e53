"""Bugs that are planted in copies of the product, and what crash states show of them. See docs/crash-states.md.

``python -m support.planted_crashes`` prints the page's table anew.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from support.planting import NOT_COPIED, PROJECT, plant

PAGE: Final = PROJECT / "docs" / "crash-states.md"
FOLDER: Final = PROJECT / "tests" / "planted" / "repository"
RUN_SECONDS_MAX: Final = 280.0
COPIED: Final = ("common", "tests/support")
# Which workloads show it; where none is named, the first one is enough.
WORKLOADS: Final = {
    "05-packs-go-before-their-index": "repack",
    "06-a-temporary-name-is-used-again": "two writers",
    "08-a-stale-index-is-trusted": "repack",
    "09-prune-ignores-the-oldest-writer": "older writers",
    "10-deleted-by-the-first-fence": "older writers",
    "11-old-keys-go-before-new-ones-are-there": "key rotation",
    "12-the-fence-is-not-enforced": "suspended writer",
    "15-a-list-of-writers-replaces-the-one-before": "init",
    "16-the-announcement-of-a-writer-given-up-stays": "older writers",
    "17-a-writer-does-not-look-for-its-announcement": "older writers",
    "18-a-point-that-is-found-is-not-made-durable": "found by another",
}
_ROW: Final = re.compile(
    r"^\| `([^`]+)` \| ([^|]+) \| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", re.MULTILINE
)
_NAME: Final = re.compile(r"/repository/(\w+)[\w/.-]*")
_CALL: Final = re.compile(r"^seed \d+, after (?:call \d+, )?")
_PLACE: Final = re.compile(r" \[\d+, \+\d+\)")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One bug: its patch, the workload that shows it, the worst disk, and what is wrong with that."""

    patch: str
    bug: str
    workload: str
    state: str
    loss: str


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What the crash states of a broken copy came to."""

    images: int
    losses: int
    workload: str
    loss: str
    state: str
    what: str


def patches() -> list[str]:
    """Their names, without endings."""
    return sorted(path.stem for path in FOLDER.glob("*.patch"))


def patch_path(name: str) -> Path:
    """The file of a patch."""
    return FOLDER / f"{name}.patch"


def rows_of_the_page() -> list[Row]:
    """The page's table."""
    text = PAGE.read_text(encoding="utf-8")
    return [
        Row(patch=row[1], bug=row[2], workload=row[3], state=row[4], loss=row[5])
        for row in _ROW.finditer(text)
    ]


def found_in_a_copy(name: str, folder: Path) -> Finding:
    """Plant a bug in a copy below ``folder`` and judge what crashes leave of it there."""
    copy = folder / "copy"
    for each in COPIED:
        shutil.copytree(PROJECT / each, copy / each, ignore=NOT_COPIED)
    plant(patch_path(name), copy)
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    paths = os.pathsep.join([str(copy / "common"), str(copy / "tests")])
    done = subprocess.run(
        [sys.executable, "-m", "support.crash_program", str(copy), workload_of(name)],
        env={**kept, "PYTHONPATH": paths},
        cwd=copy,
        capture_output=True,
        text=True,
        timeout=RUN_SECONDS_MAX,
        check=False,
    )
    shutil.rmtree(copy)
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout)
    workload, loss, state, what = told["worst"] or ("", "", "", "")
    return Finding(
        images=told["images"],
        losses=told["losses"],
        workload=workload,
        loss=loss,
        state=state,
        what=what,
    )


def workload_of(name: str) -> str:
    """The one that shows this bug."""
    return WORKLOADS.get(name, "full")


def shortened(state: str) -> str:
    """A state without numbers and random names."""
    text = _NAME.sub(r"\1", _PLACE.sub("", _CALL.sub("after ", state)))
    return text.replace("|", "/")


def main() -> None:
    """Print the table."""
    bugs = {row.patch: row.bug for row in rows_of_the_page()} if PAGE.exists() else {}
    for name in patches():
        with tempfile.TemporaryDirectory() as folder:
            found = found_in_a_copy(name, Path(folder))
        bug = bugs.get(name, name[3:].replace("-", " "))
        print(f"| `{name}` | {bug} | {found.workload} | {shortened(found.state)} | {found.loss} |")


if __name__ == "__main__":
    main()
