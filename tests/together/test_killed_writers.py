"""What a killed writer leaves half written in a repository does not stay there for ever."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from holdfast_common.job_result import Outcome
from holdfast_common.repository.directory_store import TEMPORARY_AGE_MAX
from holdfast_common.units import MIB
from support.backup_jobs import Site, make_site


@pytest.fixture
def site(tmp_path: Path) -> Site:
    site = make_site(tmp_path)
    site.make_disk(2000, bytes(MIB))
    return site


def test_the_next_backup_removes_what_a_writer_left_days_ago_and_nothing_younger(
    site: Site,
) -> None:
    old, young = (site.repository.folder / "tmp" / name for name in ("old", "young"))
    for path in (old, young):
        path.write_bytes(b"half a pack")
    days_ago = time.time() - TEMPORARY_AGE_MAX.total_seconds() - 60
    os.utime(old, (days_ago, days_ago))
    assert site.back_up().outcome is Outcome.DONE
    assert (old.exists(), young.exists()) == (False, True)
