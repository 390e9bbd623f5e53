"""One kind of reading of the vCenters: a thread for each, one at a time of each. For `inventory_watch`."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable

from holdfast_common.errors import HoldfastError

log = logging.getLogger(__name__)


class VcenterReadings:
    """``read`` takes a vCenter's id; ``then`` is done with it when that succeeded. Thread-safe."""

    def __init__(
        self,
        what: str,
        read: Callable[[str], object],
        then: Callable[[str], object] | None = None,
    ) -> None:
        self._what = what
        self._do_read = read
        self._then = then
        self._lock = threading.Lock()
        self._reading: dict[str, threading.Thread] = {}

    def begin(
        self, vcenter_ids: Iterable[str], *, only_running: bool = False
    ) -> list[threading.Thread]:
        """Start reading these vCenters, each unless it is being read; the threads that read them."""
        with self._lock:
            threads = []
            for vcenter_id in vcenter_ids:
                if vcenter_id not in self._reading and not only_running:
                    self._start(vcenter_id)
                if vcenter_id in self._reading:
                    threads.append(self._reading[vcenter_id])
            return threads

    def goes_on(self, vcenter_id: str) -> bool:
        """Whether this vCenter is being read."""
        with self._lock:
            return vcenter_id in self._reading

    def _start(self, vcenter_id: str) -> None:
        thread = threading.Thread(
            target=self._read, args=(vcenter_id,), name=f"{self._what} {vcenter_id}", daemon=True
        )
        self._reading[vcenter_id] = thread
        try:
            thread.start()
        except RuntimeError as error:  # the machine has no thread left
            del self._reading[vcenter_id]
            log.warning("%s is not read", self._what, extra={"error": str(error)})

    def _read(self, vcenter_id: str) -> None:
        try:
            self._do_read(vcenter_id)
            if self._then is not None:
                self._then(vcenter_id)
        except HoldfastError as error:
            log.warning(
                "%s could not be read",
                self._what,
                extra={"vcenter": vcenter_id, "error": error.line()},
            )
        except Exception:
            # A bug with one vCenter must not end the watch over it: the next round tries again.
            log.exception("%s could not be read", self._what, extra={"vcenter": vcenter_id})
        finally:
            with self._lock:
                del self._reading[vcenter_id]
