"""What a daemon tells systemd."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from holdfast_common.service_manager import ServiceManager
from support.notify_socket import notify_socket


def test_systemd_is_told_of_the_start_the_life_and_the_end(tmp_path: Path) -> None:
    with notify_socket(tmp_path) as listening:
        manager = ServiceManager.of_environment({"NOTIFY_SOCKET": str(listening.path)})
        manager.ready()
        manager.alive()
        manager.status("3 jobs\nat work")
        manager.stopping()
        listening.wait_for("STOPPING=1")
        assert listening.told == ["READY=1", "WATCHDOG=1", "STATUS=3 jobs at work", "STOPPING=1"]


def test_signs_of_life_are_given_three_times_before_they_are_missed() -> None:
    environment = {"NOTIFY_SOCKET": "/run/notify", "WATCHDOG_USEC": "90000000"}
    assert ServiceManager.of_environment(environment).alive_every_seconds == 30.0
    for_us = {**environment, "WATCHDOG_PID": str(os.getpid())}
    assert ServiceManager.of_environment(for_us).alive_every_seconds == 30.0


@pytest.mark.parametrize(
    "changes",
    [
        {"WATCHDOG_PID": "1"},
        {"WATCHDOG_USEC": "soon"},
        {"WATCHDOG_USEC": ""},
        {"NOTIFY_SOCKET": ""},
    ],
)
def test_nobody_is_told_that_waits_for_no_signs_of_life(changes: dict[str, str]) -> None:
    environment = {"NOTIFY_SOCKET": "/run/notify", "WATCHDOG_USEC": "90000000", **changes}
    assert ServiceManager.of_environment(environment).alive_every_seconds == 0.0


def test_a_manager_that_is_gone_disturbs_nobody(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ServiceManager(str(tmp_path / "gone")).alive()
    assert "systemd could not be told" in caplog.text
    ServiceManager().alive()
    assert len(caplog.records) == 1
