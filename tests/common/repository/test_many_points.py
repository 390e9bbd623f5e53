"""An incremental costs what changed, however many points there are and however large the disk is."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.many_points import History, measured
from holdfast_common.units import GIB, TIB


@pytest.mark.repeats
def test_the_three_hundredth_incremental_costs_what_the_tenth_did(tmp_path: Path) -> None:
    """On a sparse 64 TiB disk. Ten thousand are measured by `make bench-index`."""
    history = History(tmp_path / "old", 64 * TIB, places=6, leaves=64)
    young = History(tmp_path / "young", 64 * TIB, places=6, leaves=64)
    costs = measured(history, young, 300)
    assert history.disk is not None
    assert history.disk.used is not None
    assert len(history.disk.used.indexes or ()) < 64
    assert costs.map_objects <= 64
    assert costs.ratio < 3 * 1.2


@pytest.mark.long
@pytest.mark.timeout(1200)  # a thousand of them, on a machine that may be busy
@pytest.mark.parametrize("capacity_bytes", [64 * GIB, 64 * TIB])
def test_the_thousandth_incremental_costs_what_the_tenth_did(
    tmp_path: Path, capacity_bytes: int
) -> None:
    """Fails at three times its goal: the machine may be busy."""
    old, young = (History(tmp_path / name, capacity_bytes, places=30) for name in ("old", "young"))
    assert measured(old, young, 1000).ratio < 3 * 1.2
