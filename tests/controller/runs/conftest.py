"""What nearly every test of runs has; its lab is each test file's own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast_lab.server import RunningLab
from support.one_process import OneProcess, one_process


@pytest.fixture
def holdfast(tmp_path: Path, lab: RunningLab) -> Iterator[OneProcess]:
    with one_process(tmp_path / "holdfast", lab) as ready:
        yield ready
