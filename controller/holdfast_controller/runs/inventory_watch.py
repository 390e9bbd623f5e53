"""Keeps what is known of the vCenters fresh: before VMs are selected, and every few minutes.

Before `engine` chooses VMs. One vCenter that hangs holds neither the others nor a selection for long:
what was known of it is used then, and its age is told.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Final

from holdfast_common.errors import HoldfastError
from holdfast_controller.decide.selection import names_tags
from holdfast_controller.runs.vcenter_readings import VcenterReadings
from holdfast_controller.runs.world import World
from holdfast_controller.store.vcenters import VcenterRow

log = logging.getLogger(__name__)

PULSE: Final = "inventories"
PULSE_SECONDS_MAX: Final = 300.0  # a round only starts threads
SELECTION_SECONDS: Final = 20.0  # an operator waits for it


class InventoryWatch:
    """Reads inventories again, and then the tags of their VMs, which hold up only who selects by tag."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._tags = VcenterReadings("tags", self._read_tags)
        self._vms = VcenterReadings(
            "an inventory",
            self._read_vms,
            then=lambda vcenter_id: self._tags.begin([vcenter_id]),
        )

    def run(self) -> None:
        """Until the controller stops."""
        seconds, pulses = self._world.configuration.inventory_seconds, self._world.pulses
        pulses.expect(PULSE, within_seconds=seconds + PULSE_SECONDS_MAX)
        while not self._world.stopping.wait(seconds):
            pulses.beat(PULSE)
            try:
                self._vms.begin(row.vcenter_id for row in self._world.vcenters.table.all())
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
        by_tag = any(names_tags(each) for each in selectors)
        for readings in (self._vms, self._tags) if by_tag else (self._vms,):
            # one that has begun may have looked before the VM, or its tag, was there
            for again in (False, True):
                ids = [row.vcenter_id for row in rows]
                for thread in readings.begin(ids, only_running=not again):
                    thread.join(max(0.0, ends_at - clock.monotonic_seconds()))
        lines = [text for row in rows if (text := self._old(table.vcenter(row.vcenter_id)))]
        if by_tag:
            silent = [row.name for row in rows if self._tags.goes_on(row.vcenter_id)]
            lines += inventory.told_of_tags(clock.now(), vcenter=vcenter, silent=silent)
        return lines

    def _read_vms(self, vcenter_id: str) -> None:
        self._world.vcenters.refresh(vcenter_id)

    def _read_tags(self, vcenter_id: str) -> None:
        self._world.vcenters.refresh_tags(vcenter_id)

    def _old(self, row: VcenterRow) -> str:
        """What is to be told of a vCenter whose inventory could not be read now; empty: it was."""
        hangs = self._vms.goes_on(row.vcenter_id)
        if not hangs and not row.last_error:
            return ""
        taken = self._world.vcenters.inventory.taken_at(row.vcenter_id)
        reason = "it does not answer" if hangs else row.last_error
        return (
            f"the VMs of {row.name} are as they were seen at {taken[:19] or 'no time'}:"
            f" it could not be read again: {reason}"
        )
