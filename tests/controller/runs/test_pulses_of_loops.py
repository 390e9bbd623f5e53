"""The reconciler's loop, and the dispatcher that it keeps going, are missed when one of them hangs."""

from __future__ import annotations

import threading

import pytest

from holdfast_controller.runs import engine, reconcile
from support.one_process import OneProcess
from support.waiting import wait_until

WITHIN_SECONDS = 3 * reconcile.LOOK_SECONDS


@pytest.mark.long  # it waits for loops that go round once a second
def test_a_dispatcher_that_hangs_is_missed_and_lives_again_when_it_goes_on(
    holdfast: OneProcess,
) -> None:
    pulses, world = holdfast.world.pulses, holdfast.world
    thread = threading.Thread(
        target=holdfast.reconciler.run, args=(holdfast.engine.reconciled,), daemon=True
    )
    thread.start()
    wait_until(lambda: reconcile.PULSE in pulses._within, what="the reconciler begins")
    pulses.expect(reconcile.PULSE, within_seconds=WITHIN_SECONDS)
    assert engine.PULSE in pulses._within
    pause = threading.Event()
    pause.wait(2 * WITHIN_SECONDS)
    assert pulses.silent() == []  # it goes round, although it has nothing to do
    with holdfast.engine.dispatcher._lock:
        world.attended.look_soon()
        wait_until(lambda: pulses.silent() == [reconcile.PULSE], what="it is missed")
    wait_until(lambda: pulses.silent() == [], what="it lives again")
    world.stopping.set()
    thread.join(30)
    assert reconcile.PULSE not in pulses._within
