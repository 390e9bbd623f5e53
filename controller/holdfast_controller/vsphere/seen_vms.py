"""Where the VMs of one vCenter were seen last: hints, so that a VM is found without reading them all.

A hint is asked for its identity before it is used, always.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable


class SeenVms:
    """Ids by instance uuid. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._morefs: dict[str, str] = {}

    def moref(self, instance_uuid: str) -> str:
        """Where it was last; empty: it was never seen."""
        with self._lock:
            return self._morefs.get(instance_uuid, "")

    def add(self, instance_uuid: str, moref: str) -> None:
        """It was seen, and it alone had this identity."""
        with self._lock:
            self._morefs[instance_uuid] = moref

    def replace(self, seen: Iterable[tuple[str, str]]) -> None:
        """All that are there now. Of two with one identity neither is a hint."""
        found: dict[str, str] = {}
        twice: set[str] = set()
        for instance_uuid, moref in seen:
            if instance_uuid in found:
                twice.add(instance_uuid)
            found[instance_uuid] = moref
        with self._lock:
            self._morefs = {key: moref for key, moref in found.items() if key not in twice}
