"""Keeps what is known of the vCenters fresh: before VMs are selected, and every few minutes.

Before `engine` chooses VMs. One vCenter that hangs holds neither the others nor a selection for long:
what was known of it is used then, and its age is told.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Sequence
from typing import Final

from holdfast_common.errors import HoldfastError
from holdfast_controller.runs.world import World
from holdfast_controller.store.vcenters import VcenterRow

log = logging.getLogger(__name__)

PULSE: Final = "inventories"
PULSE_SECONDS_MAX: Final = 300.0  # a round only starts threads
SELECTION_SECONDS: Final = 20.0  # an operator waits for it


class InventoryWatch:
    """Reads inventories again, one thread for each vCenter, one read of a vCenter at a time."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._lock = threading.Lock()
        self._reading: dict[str, threading.Thread] = {}

    def run(self) -> None:
        """Until the controller stops."""
        seconds, pulses = self._world.configuration.inventory_seconds, self._world.pulses
        pulses.expect(PULSE, within_seconds=seconds + PULSE_SECONDS_MAX)
        while not self._world.stopping.wait(seconds):
            pulses.beat(PULSE)
            try:
                self.begin(self._world.vcenters.table.all())
            except HoldfastError as error:
                log.warning("no inventory could be read", extra={"error": error.line()})
        pulses.end(PULSE)

    def before_selecting(self, selectors: Sequence[str], *, vcenter: str = "") -> list[str]:
        """Read again what the selectors are about, for so long; what could not be is told.

        VMs that are all named exactly and known are found as they are: each job reads its VM itself.
        """
        table, inventory = self._world.vcenters.table, self._world.vcenters.inventory
        if inventory.knows_all(selectors):
            return []
        rows = [row for row in table.all() if vcenter in ("", row.name)]
        clock = self._world.clock
        ends_at = clock.monotonic_seconds() + SELECTION_SECONDS
        # one that has begun may have looked before the VM was there
        for again in (False, True):
            for thread in self.begin(rows, only_running=not again):
                thread.join(max(0.0, ends_at - clock.monotonic_seconds()))
        return [text for row in rows if (text := self._old(table.vcenter(row.vcenter_id)))]

    def begin(
        self, rows: Iterable[VcenterRow], *, only_running: bool = False
    ) -> list[threading.Thread]:
        """Start reading these vCenters, each unless it is being read; the threads that read them."""
        with self._lock:
            threads = []
            for row in rows:
                if row.vcenter_id not in self._reading and not only_running:
                    self._start(row.vcenter_id)
                if row.vcenter_id in self._reading:
                    threads.append(self._reading[row.vcenter_id])
            return threads

    def _start(self, vcenter_id: str) -> None:
        thread = threading.Thread(
            target=self._read, args=(vcenter_id,), name=f"inventory {vcenter_id}", daemon=True
        )
        self._reading[vcenter_id] = thread
        try:
            thread.start()
        except RuntimeError as error:  # the machine has no thread left
            del self._reading[vcenter_id]
            log.warning("an inventory is not read", extra={"error": str(error)})

    def _read(self, vcenter_id: str) -> None:
        try:
            self._world.vcenters.refresh(vcenter_id)
        except HoldfastError as error:
            log.warning(
                "an inventory could not be read",
                extra={"vcenter": vcenter_id, "error": error.line()},
            )
        except Exception:
            # A bug with one inventory must not end the watch over it: the next round tries again.
            log.exception("an inventory could not be read", extra={"vcenter": vcenter_id})
        finally:
            with self._lock:
                del self._reading[vcenter_id]

    def _old(self, row: VcenterRow) -> str:
        """What is to be told of a vCenter whose inventory could not be read now; empty: it was."""
        with self._lock:
            hangs = row.vcenter_id in self._reading
        if not hangs and not row.last_error:
            return ""
        taken = self._world.vcenters.inventory.taken_at(row.vcenter_id)
        reason = "it does not answer" if hangs else row.last_error
        return (
            f"the VMs of {row.name} are as they were seen at {taken[:19] or 'no time'}:"
            f" it could not be read again: {reason}"
        )
