"""The simulation finds what it is for: bugs planted in copies of the product. See docs/simulation.md."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from support.planting import PROJECT, applies, copied_product, plant

FOLDER = Path(__file__).parent / "simulation"
PAGE = PROJECT / "docs" / "simulation.md"
PATCHES = tuple(sorted(path.name for path in FOLDER.glob("*.patch")))
ROWS = dict(re.findall(r"^\| `(\S+)\.patch` \| .* \| (.*) \|$", PAGE.read_text(), re.MULTILINE))
SEEDS_MAX = 1_500
RUN_SECONDS = 400.0


def test_the_page_of_the_simulation_has_a_row_for_every_patch() -> None:
    assert [f"{name}.patch" for name in ROWS] == list(PATCHES)
    assert len(PATCHES) >= 12


@pytest.mark.parametrize("name", PATCHES)
def test_a_patch_of_the_simulation_still_applies(name: str) -> None:
    assert applies(FOLDER / name, PROJECT) == ""


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", PATCHES)
def test_a_planted_bug_is_found_by_the_simulation(name: str, tmp_path: Path) -> None:
    folder = copied_product(tmp_path / "copy")
    plant(FOLDER / name, folder)
    parts = [str(folder / each) for each in ("common", "agent", "controller", "lab", "tests")]
    done = subprocess.run(
        [sys.executable, "-m", "simulation.repeat", "--until-one-fails", "0", str(SEEDS_MAX)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(parts)},
        capture_output=True,
        text=True,
        timeout=RUN_SECONDS,
        check=False,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert ROWS[name.removesuffix(".patch")] in done.stdout
    assert "a bug in Holdfast" not in done.stdout
