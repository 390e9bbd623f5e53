"""systemd hears that the controller lives only while everything goes round that it lives by."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from holdfast_common.clock import SystemClock
from holdfast_common.identity import JobId
from holdfast_common.pulses import Pulses
from holdfast_common.service_manager import ServiceManager
from holdfast_controller.decide.dispatch import WaitingJob
from holdfast_controller.decide.load_limits import LoadLimits
from holdfast_controller.runs.dispatcher import Dispatcher
from holdfast_controller.service.daemon import feed_watchdog
from support.notify_socket import NotifySocket, notify_socket

EVERY_SECONDS = 0.02


def fed(listening: NotifySocket, pulses: Pulses) -> asyncio.Task[None]:
    manager = ServiceManager(str(listening.path), watchdog_seconds=3 * EVERY_SECONDS)
    return asyncio.create_task(feed_watchdog(manager, pulses))


def test_the_watchdog_is_fed_while_all_loops_go_round(tmp_path: Path) -> None:
    async def fed_three_times() -> None:
        with notify_socket(tmp_path) as listening:
            task = fed(listening, Pulses())
            await asyncio.to_thread(
                listening.wait_until, lambda: listening.told.count("WATCHDOG=1") == 3
            )
            task.cancel()

    asyncio.run(fed_three_times())


def test_a_loop_that_stands_still_starves_the_watchdog_until_it_goes_on(tmp_path: Path) -> None:
    async def starved() -> None:
        pulses = Pulses()
        pulses.expect("dispatcher", within_seconds=-1.0)
        with notify_socket(tmp_path) as listening:
            task = fed(listening, pulses)
            assert await asyncio.to_thread(listening.is_quiet, seconds=10 * EVERY_SECONDS)
            pulses.end("dispatcher")
            await asyncio.to_thread(listening.wait_for, "WATCHDOG=1")
            task.cancel()

    asyncio.run(starved())


def test_nothing_is_told_where_nobody_waits(tmp_path: Path) -> None:
    with notify_socket(tmp_path) as listening:
        asyncio.run(feed_watchdog(ServiceManager(str(listening.path)), Pulses()))
        assert listening.is_quiet(seconds=0.01)


def test_a_dispatcher_with_a_job_that_could_begin_and_does_not_is_not_moving(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def none_left(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    carried_out: list[JobId] = []
    dispatcher = Dispatcher(
        LoadLimits(), SystemClock(), carry_out=lambda begun: carried_out.append(begun.job_id)
    )
    assert dispatcher.is_moving()
    with monkeypatch.context() as full:
        full.setattr(threading.Thread, "start", none_left)
        dispatcher.add(WaitingJob(job_id=JobId("left behind")))
    assert not dispatcher.is_moving()
    dispatcher.join()
    assert dispatcher.is_moving()
    assert carried_out == ["left behind"]
