"""What tests count arrives from all processes of a test run: an unfit kind of number once ended a whole run."""

import os
import subprocess
import sys
from pathlib import Path

import support

TOLD = """
from collections import Counter
import pytest
from support import figures_summary

@pytest.mark.parametrize("part", range(4))
def test_part(part, record_property):
    figures_summary.tell_line(record_property, "one line, once")
    figures_summary.tell_counts(record_property, {"parts": Counter({"seeds": 10, "odd": part % 2})})
"""
CONFTEST = """
from support.figures_summary import FiguresSummary

def pytest_configure(config):
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(FiguresSummary())
"""


def test_counts_of_several_processes_are_added_up_and_a_line_is_told_once(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_told.py").write_text(TOLD)
    tests_folder = str(Path(support.__path__[0]).parent)

    ended = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-n",
            "2",
            "-p",
            "no:cacheprovider",
            "--rootdir",
            ".",
            ".",
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": tests_folder},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ended.stdout.count("one line, once") == 1
    assert "parts: odd 2, seeds 40" in ended.stdout
