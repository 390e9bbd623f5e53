from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from holdfast_common.errors import TimedOut
from holdfast_common.repository.mount_probe import check_answers
from support.hanging_mount import hanging_mount
from support.waiting import wait_until


def probes() -> int:
    return sum(thread.name == "mount-probe" for thread in threading.enumerate())


def test_what_answers_or_is_not_there_is_no_business_of_the_probe(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "file", tmp_path / "missing" / "folder"):
        check_answers(path, seconds=5)
    assert probes() == 0


def test_a_mount_that_hangs_is_an_error_in_time_and_costs_one_thread(tmp_path: Path) -> None:
    with hanging_mount(tmp_path):
        for path in (tmp_path, tmp_path, tmp_path):
            began = time.monotonic()
            with pytest.raises(TimedOut, match="does not answer") as caught:
                check_answers(path, seconds=0.2)
            assert time.monotonic() - began < 10
            assert caught.value.exit_status == 124
            assert caught.value.facts["path"] == str(tmp_path)
        assert probes() == 1
    wait_until(lambda: probes() == 0)
    check_answers(tmp_path, seconds=5)  # and once it is back, it is used again
