"""``controller.toml``: what its limits mean."""

from __future__ import annotations

from pathlib import Path

import pytest

from holdfast_common.errors import ConfigurationError
from holdfast_common.units import GIB
from holdfast_controller.configuration import (
    ControllerConfiguration,
    DatastoreFloor,
    configuration_text,
    read_configuration,
)

TIB = 1024 * GIB


def test_the_file_that_init_writes_is_read_as_it_was_meant(tmp_path: Path) -> None:
    file = tmp_path / "controller.toml"
    meant = ControllerConfiguration(
        jobs_at_once_max=7, datastores=DatastoreFloor(free_share_min=0.0, free_bytes_min=200 * GIB)
    )
    file.write_text(configuration_text(meant))
    assert read_configuration(file) == meant


def test_a_file_of_before_there_was_a_floor_means_a_tenth(tmp_path: Path) -> None:
    file = tmp_path / "controller.toml"
    file.write_text('session_address = "0.0.0.0:9440"\n')
    floor = read_configuration(file).datastores
    assert floor.before_snapshot_bytes(10 * TIB) == TIB
    assert floor.under_snapshot_bytes(10 * TIB) == TIB // 2


def test_of_a_share_and_a_size_the_larger_one_counts() -> None:
    floor = DatastoreFloor(free_share_min=0.02, free_bytes_min=100 * GIB)
    assert floor.before_snapshot_bytes(TIB) == 100 * GIB
    assert floor.before_snapshot_bytes(100 * TIB) == 2 * TIB
    assert DatastoreFloor(free_share_min=0.0).before_snapshot_bytes(TIB) == 0


@pytest.mark.parametrize(
    "line", ["free_share_min = 1.0", "free_share_min = -0.1", "free_bytes_min = -1", "free = 1"]
)
def test_a_floor_that_cannot_be_is_named(tmp_path: Path, line: str) -> None:
    file = tmp_path / "controller.toml"
    file.write_text(f"[datastores]\n{line}\n")
    with pytest.raises(ConfigurationError, match="datastores"):
        read_configuration(file)
