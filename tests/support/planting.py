"""The page of rules, the patches that break them, and copies of the product to break.

A patch is applied to a copy; then only its rule's tests run there, in a process of their own.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path
from typing import Final

PROJECT: Final = Path(__file__).parents[2]
RULES_PAGE: Final = PROJECT / "docs" / "rules.md"
PATCH_FOLDER: Final = PROJECT / "tests" / "planted"
RULES: Final = range(1, 39)
COPIED: Final = ("common", "agent", "controller", "lab", "tests", "docs", "pyproject.toml")
NOT_COPIED: Final = shutil.ignore_patterns(".pytest_cache", ".mypy_cache", ".ruff_cache")
RUN_SECONDS_MAX: Final = 280.0
GIT_SECONDS_MAX: Final = 60.0
_ROW: Final = re.compile(r"^\| (\d+) \|(.*)\|$", re.MULTILINE)
_TEST: Final = re.compile(r"tests/[\w/]+\.py::\w+")
_LATER: Final = "later:"
_PATCH_NAME: Final = re.compile(r"^(\d\d)-[a-z0-9-]+\.patch$")
# A product that no longer starts breaks no rule: such a failure does not count.
_BROKEN: Final = re.compile(
    r"\b(ImportError|ModuleNotFoundError|NameError|SyntaxError|IndentationError|UnboundLocalError)\b"
    r"|a bug in Holdfast"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One row of the page. ``later``: why nothing keeps it yet; empty when something does."""

    number: int
    tests: tuple[str, ...]
    later: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TestRun:
    """How a run of tests ended; ``failed`` holds each failure's text, ``errors`` what was no test."""

    status: int
    passed: int
    failed: tuple[str, ...]
    errors: tuple[str, ...]
    output: str

    @property
    def caught(self) -> bool:
        """Whether a test failed, and for no other reason than what it tests."""
        return bool(self.failed) and not any(_BROKEN.search(text) for text in self.failed)

    def told(self) -> str:
        """For people."""
        return f"status {self.status}, {self.passed} passed\n{self.output[-6000:]}"


def read_rules(text: str) -> list[Rule]:
    """The rows of the page, in its order."""
    rules = []
    for row in _ROW.finditer(text):
        last = row[2].rpartition("|")[2].strip()
        later = last.partition(_LATER)[2].strip() if last.startswith(_LATER) else ""
        tests = tuple(dict.fromkeys(_TEST.findall(last)))
        rules.append(Rule(number=int(row[1]), tests=tests, later=later))
    return rules


def rules_of_the_page() -> list[Rule]:
    """The page's rows."""
    return read_rules(RULES_PAGE.read_text(encoding="utf-8"))


def patches() -> dict[int, Path]:
    """Every patch by its rule's number. Two of one rule, or another name, fail."""
    found: dict[int, Path] = {}
    for path in sorted(PATCH_FOLDER.glob("*.patch")):
        name = _PATCH_NAME.match(path.name)
        assert name is not None, f"{path.name} is not named NN-what-breaks.patch"
        assert int(name[1]) not in found, f"{path.name} is a second patch of its rule"
        found[int(name[1])] = path
    return found


def applies(patch: Path, folder: Path) -> str:
    """Why a patch does not apply; empty when it does."""
    return _git_apply(folder, "--check", patch)


def copied_product(to: Path) -> Path:
    """A copy of everything that the tests need."""
    to.mkdir(parents=True)
    for name in COPIED:
        source = PROJECT / name
        if source.is_dir():
            shutil.copytree(source, to / name, ignore=NOT_COPIED)
        else:
            shutil.copy2(source, to / name)
    return to


def plant(patch: Path, folder: Path) -> None:
    """Break a copy."""
    problem = _git_apply(folder, patch)
    assert not problem, f"{patch.name} does not apply any more: {problem}"


def run_tests(folder: Path, tests: tuple[str, ...], *, stop_at_first: bool = True) -> TestRun:
    """Run some tests of a copy, on the copy."""
    report = folder / "report.xml"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
        "-p",
        "support.copied_packages",
        "--junitxml",
        str(report),
        "--basetemp",
        str(folder / "temporary"),
        *(["-x"] if stop_at_first else []),
        *tests,
    ]
    done = subprocess.run(
        command,
        cwd=folder,
        env=_environment(folder),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=RUN_SECONDS_MAX,
        check=False,
    )
    failed, errors, passed = _read_report(report)
    return TestRun(
        status=done.returncode, passed=passed, failed=failed, errors=errors, output=done.stdout
    )


def _environment(folder: Path) -> dict[str, str]:
    """The copy's packages first, also for programs that the tests start."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PYTEST_", "COV_", "HOLDFAST_"))
    }
    parts = [str(folder / name) for name in ("common", "agent", "controller", "lab", "tests")]
    return {**kept, "PYTHONPATH": os.pathsep.join(parts)}


def _read_report(path: Path) -> tuple[tuple[str, ...], tuple[str, ...], int]:
    if not path.exists():
        return (), ("no report was written",), 0
    cases = list(ElementTree.parse(path).iter("testcase"))
    failed = tuple(_text(each) for case in cases for each in case.findall("failure"))
    errors = tuple(_text(each) for case in cases for each in case.findall("error"))
    passed = sum(1 for case in cases if len(case) == 0 or case.find("system-out") is not None)
    return failed, errors, passed - sum(1 for case in cases if case.find("failure") is not None)


def _text(element: ElementTree.Element) -> str:
    return f"{element.get('message', '')}\n{element.text or ''}"


def _git_apply(folder: Path, *arguments: str | Path) -> str:
    # A copy may lie below a repository: its root would then be taken for the patch's.
    environment = {**os.environ, "GIT_CEILING_DIRECTORIES": str(folder.parent)}
    done = subprocess.run(
        ["git", "apply", "--whitespace=nowarn", *map(str, arguments)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=GIT_SECONDS_MAX,
        check=False,
    )
    return "" if done.returncode == 0 else done.stderr.strip() or f"git ended {done.returncode}"
