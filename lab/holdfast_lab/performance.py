"""The PerformanceManager, as far as a backup asks it: how long reads from each datastore take, as each host sees it.

A datastore's figure is what it was told by the control socket, and so much more for every stream that is open there.
It is what holds at the moment of the question, where vSphere gives the mean of the last 20 seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from pyVmomi import vim

from holdfast_lab.datastores import Datastore
from holdfast_lab.faults import invalid_argument
from holdfast_lab.hosts import Host
from holdfast_lab.lab_clock import utc_now
from holdfast_lab.lab_object import LabObject, wire_property
from holdfast_lab.method_registry import Call, soap_method

if TYPE_CHECKING:
    from holdfast_lab.wire_types import WireObject

Manager = vim.PerformanceManager
REAL_TIME_SECONDS: Final = 20  # between two samples that a host takes
READ_LATENCY: Final = (
    182  # vCenter numbers its counters as it likes; another one has another number
)
# another counter of the same objects, so that nobody takes the first for the only one
COUNTERS: Final[Mapping[int, tuple[str, str, str]]] = {
    178: ("datastore", "numberReadAveraged", "number"),
    READ_LATENCY: ("datastore", "totalReadLatency", "millisecond"),
}


class PerformanceManager(LabObject):
    """Counters and their samples."""

    kind = vim.PerformanceManager

    @wire_property("perfCounter")
    def counters(self) -> object:
        return [_counter(key) for key in COUNTERS]


def _counter(key: int) -> WireObject:
    group, name, unit = COUNTERS[key]
    return Manager.CounterInfo(
        key=key,
        nameInfo=vim.ElementDescription(label=name, summary=name, key=name),
        groupInfo=vim.ElementDescription(label=group, summary=group, key=group),
        unitInfo=vim.ElementDescription(label=unit, summary=unit, key=unit),
        rollupType="average",
        statsType="absolute",
        level=1,
        perDeviceLevel=3,
    )


@soap_method("QueryPerf")
def query(call: Call) -> object:
    """Samples of hosts; an entity that has none of what is asked is left out of the answer."""
    found = []
    for spec in call.arguments.sequence("querySpec", Manager.QuerySpec):
        if any(metric.counterId not in COUNTERS for metric in spec.metricId):
            raise invalid_argument("querySpec.metricId")
        asked = call.lab.find(spec.entity)
        series = []
        if isinstance(asked, Host) and asked.connected and spec.intervalId == REAL_TIME_SECONDS:
            series = [each for metric in spec.metricId for each in _series(asked, metric)]
        if series:
            sample = Manager.SampleInfo(timestamp=utc_now(), interval=REAL_TIME_SECONDS)
            found.append(Manager.EntityMetric(entity=asked.ref, sampleInfo=[sample], value=series))
    return found


def _series(host: Host, metric: WireObject) -> list[WireObject]:
    """One number for each datastore of a host that is asked for; its instance is the last part of its URL."""
    if metric.counterId != READ_LATENCY:
        return []
    return [
        Manager.IntSeries(
            id=Manager.MetricId(counterId=READ_LATENCY, instance=each.uuid), value=[_told(each)]
        )
        for each in host.datastores()
        if metric.instance in ("*", each.uuid)
    ]


def _told(datastore: Datastore) -> int:
    """The figure; each change of what is told is a line of the log."""
    found = datastore.read_latency_now()
    if found != datastore.read_latency_told:
        datastore.read_latency_told = found
        datastore.lab.calls.event("read_latency_told", datastore=datastore.name, milliseconds=found)
    return found
