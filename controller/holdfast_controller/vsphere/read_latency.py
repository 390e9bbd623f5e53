"""How long reads from datastores take, as the hosts measure it: vSphere's own performance counters.

Beside `free_space`. A host has one figure for each datastore that it mounts, the mean of its last 20 seconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from pyVmomi import vim

from holdfast_common.errors import CapabilityAbsent
from holdfast_common.identity import DatastoreId
from holdfast_controller.vsphere.foreign import Foreign, reference
from holdfast_controller.vsphere.properties import read_one
from holdfast_controller.vsphere.session import VsphereSession

GROUP: Final = "datastore"
COUNTER: Final = "totalReadLatency"
ROLLUP: Final = "average"
REAL_TIME_SECONDS: Final = 20  # between two samples of a host
HOSTS_OF_A_CALL_MAX: Final = 50
ALL_INSTANCES: Final = "*"


class ReadLatencies:
    """Of one session. What the counter's number is there is asked once. One thread's."""

    def __init__(self, session: VsphereSession) -> None:
        self._session = session
        self._counter = 0

    def read(self, host_morefs: Sequence[str]) -> Mapping[str, float]:
        """Milliseconds by `instance_of` a datastore, of the host that waits longest for it.

        What no host has measured is left out. Raises: CapabilityAbsent, VsphereFailed, TimedOut.
        """
        manager = self._session.content().perfManager
        if manager is None:
            raise CapabilityAbsent("this vSphere keeps no performance counters")
        if not self._counter:
            self._counter = _counter_number(self._session, manager)
        found: dict[str, float] = {}
        for first in range(0, len(host_morefs), HOSTS_OF_A_CALL_MAX):
            specs = [self._spec(moref) for moref in host_morefs[first:][:HOSTS_OF_A_CALL_MAX]]
            answer = self._session.call(manager, "QueryPerf", querySpec=specs)
            for entity in answer or []:
                for instance, milliseconds in _newest(entity, self._counter):
                    found[instance] = max(found.get(instance, 0.0), milliseconds)
        return found

    def _spec(self, host_moref: str) -> Foreign:
        query = vim.PerformanceManager
        return query.QuerySpec(
            entity=reference(vim.HostSystem, host_moref),
            metricId=[query.MetricId(counterId=self._counter, instance=ALL_INSTANCES)],
            intervalId=REAL_TIME_SECONDS,
            maxSample=1,
            format="normal",
        )


def instance_of(datastore_id: DatastoreId) -> str:
    """What the counters call a datastore: the last part of its URL."""
    return datastore_id.rstrip("/").rpartition("/")[2]


def _counter_number(session: VsphereSession, manager: Foreign) -> int:
    for counter in read_one(session, manager, ["perfCounter"]).get("perfCounter") or []:
        names = (counter.groupInfo.key, counter.nameInfo.key, str(counter.rollupType))
        if names == (GROUP, COUNTER, ROLLUP):
            return int(counter.key)
    raise CapabilityAbsent(
        "this vSphere does not measure how long reads from a datastore take",
        counter=f"{GROUP}.{COUNTER}.{ROLLUP}",
    )


def _newest(entity: Foreign, counter: int) -> list[tuple[str, float]]:
    """The last sample of each datastore; -1 stands for one that is missing."""
    return [
        (str(series.id.instance), float(series.value[-1]))
        for series in entity.value or []
        if series.id.counterId == counter and series.value and series.value[-1] >= 0
    ]
