"""While a VM stands on our snapshot its redo logs grow: is there room left where they lie?

From the snapshot on until its disks are given back. A datastore that runs full stops every VM on it, so
before that the copy is cut off and the snapshot goes.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from holdfast_common.errors import Cancelled, DatastoreFull, HoldfastError
from holdfast_common.job_result import JobResult, Outcome, Warned
from holdfast_common.units import size_text
from holdfast_controller.configuration import DatastoreFloor
from holdfast_controller.facts import SnapshotFacts
from holdfast_controller.vsphere.free_space import FreeSpace, read_free_space
from holdfast_controller.vsphere.preflight import FLOOR
from holdfast_controller.vsphere.session import VsphereSession

log = logging.getLogger(__name__)

# A guest that writes 500 MB/s fills 15 GB meanwhile; the preflight asked for a tenth of the datastore.
LOOK_SECONDS = 30.0
_STOP_SECONDS_MAX = 5.0


class FreeSpaceWatch:
    """What a thread of its own last saw. Thread-safe: each field is set once or replaced whole."""

    def __init__(
        self, session: VsphereSession, snapshot: SnapshotFacts, floor: DatastoreFloor
    ) -> None:
        self._session = session
        self._floor = floor
        self._vm_moref = snapshot.vm.moref
        self._datastore_morefs = redo_log_datastores(snapshot)
        self._frozen_links = {disk.device_key: len(disk.chain) for disk in snapshot.frozen_disks}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, name="free space", daemon=True)
        self._short: FreeSpace | None = None
        self._blind = ""

    @property
    def is_low(self) -> bool:
        """Whether the copy must end now."""
        return self._short is not None

    @property
    def warnings(self) -> list[Warned]:
        """That the last look failed."""
        if not self._blind:
            return []
        text = f"the free space of the VM's datastores could not be watched: {self._blind}"
        return [Warned(code="free_space", message=text)]

    def check(self, cause: Cancelled | None = None) -> None:
        """Raises: DatastoreFull, from ``cause``: what ended the work for that reason."""
        short = self._short
        if short is not None:
            raise DatastoreFull(
                f"the copy was cut off because datastore {short.name} runs full under the snapshot",
                datastore=short.name,
                free=size_text(short.free_bytes),
                redo_logs=size_text(short.redo_log_bytes),
                capacity=size_text(short.capacity_bytes),
            ) from cause

    def judged(self, result: JobResult) -> JobResult:
        """The result with what is to be told of the watch. Raises: DatastoreFull, when it was cut off here."""
        if result.outcome is not Outcome.DONE:  # what was committed before the cut is whole
            self.check()
        return replace(result, warnings=(*result.warnings, *self.warnings))

    def start(self) -> None:
        """The first look comes after a while: the preflight has just looked."""
        self._thread.start()

    def stop(self) -> None:
        """A look that hangs is left alone: it changes nothing any more."""
        self._stop.set()
        self._thread.join(_STOP_SECONDS_MAX)

    def _look(self) -> None:
        while self._short is None and not self._stop.wait(LOOK_SECONDS):
            try:
                found = read_free_space(
                    self._session,
                    vm_moref=self._vm_moref,
                    datastore_morefs=self._datastore_morefs,
                    frozen_links=self._frozen_links,
                )
                self._short = shortest(found, self._floor)
                self._blind = ""
            except HoldfastError as error:
                self._blind = str(error)
                log.info("free space cannot be watched", extra={"error": str(error)})
            except Exception as error:
                # Nobody else looks: a bug in one look must neither end the watch nor go untold.
                self._blind = f"a bug: {type(error).__name__}"
                log.exception("free space cannot be watched because of a bug")


@contextmanager
def free_space_watched(
    session: VsphereSession, snapshot: SnapshotFacts, floor: DatastoreFloor = FLOOR
) -> Iterator[FreeSpaceWatch]:
    """Watch where the VM's redo logs lie. Raises: DatastoreFull in place of Cancelled, when that was why."""
    watch = FreeSpaceWatch(session, snapshot, floor)
    watch.start()
    try:
        yield watch
    except Cancelled as error:
        watch.check(error)
        raise
    finally:
        watch.stop()


def redo_log_datastores(snapshot: SnapshotFacts) -> set[str]:
    """Redo logs lie beside their disks, or all in the VM's own folder."""
    disks = (*snapshot.frozen_disks, *snapshot.vm.disks)
    used = {disk.tip.datastore_moref for disk in disks if disk.tip is not None}
    if snapshot.vm.vmx is not None:
        used.add(snapshot.vm.vmx.datastore_moref)
    return used - {""}


def shortest(spaces: Iterable[FreeSpace], floor: DatastoreFloor = FLOOR) -> FreeSpace | None:
    """The datastore under its floor with the least room; None: all have enough. Pure."""
    short = [
        each
        for each in spaces
        if each.capacity_bytes and each.free_bytes < floor_bytes(each, floor)
    ]
    return min(short, key=lambda each: each.free_bytes, default=None)


def floor_bytes(space: FreeSpace, floor: DatastoreFloor) -> int:
    """What must stay free on a datastore. Pure.

    Beside what the redo logs hold: merging them into thin disks takes as much before it gives it back.
    """
    return floor.under_snapshot_bytes(space.capacity_bytes) + space.redo_log_bytes
