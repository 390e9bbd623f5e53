"""How long reads from a datastore take, as the lab's hosts say that they measured it."""

from __future__ import annotations

from typing import Any

import pytest
from pyVmomi import vim, vmodl

from holdfast_lab.server import RunningLab
from support.lab_soap_clients import find, read

Manager = vim.PerformanceManager


def latency_counter(service: Any) -> Any:
    manager = service.RetrieveContent().perfManager
    counters = read(service, manager, "perfCounter")["perfCounter"]
    (found,) = (
        each
        for each in counters
        if (each.groupInfo.key, each.nameInfo.key) == ("datastore", "totalReadLatency")
    )
    return found


def samples(service: Any, *, counter: int, instance: str = "*") -> dict[str, list[int]]:
    manager = service.RetrieveContent().perfManager
    host = find(service, vim.HostSystem, next(iter(service_hosts(service))))
    spec = Manager.QuerySpec(
        entity=host,
        metricId=[Manager.MetricId(counterId=counter, instance=instance)],
        intervalId=20,
        maxSample=1,
    )
    (entity,) = manager.QueryPerf([spec]) or [None]
    return {} if entity is None else {each.id.instance: list(each.value) for each in entity.value}


def service_hosts(service: Any) -> list[str]:
    content = service.RetrieveContent()
    view = content.viewManager.CreateContainerView(content.rootFolder, [vim.HostSystem], True)
    names = [read(service, each, "name")["name"] for each in view.view]
    view.Destroy()
    return sorted(names)


def test_a_host_has_a_figure_for_each_datastore_by_the_last_part_of_its_url(
    lab: RunningLab, service: Any
) -> None:
    lab.control.call("datastore-set", name="nfs1", read_latency=35)
    counter = latency_counter(service)
    assert (str(counter.rollupType), counter.unitInfo.key) == ("average", "millisecond")
    found = samples(service, counter=counter.key)
    nfs1 = lab.lab.datastore("nfs1")
    assert found[nfs1.url.rstrip("/").rpartition("/")[2]] == [35]
    assert len(found) == len(lab.lab.datastores())
    assert samples(service, counter=counter.key, instance=nfs1.uuid) == {nfs1.uuid: [35]}
    told = lab.lab.calls.events(event="read_latency_told")
    assert [each["milliseconds"] for each in told if each["datastore"] == "nfs1"] == [35]


def test_every_open_stream_makes_it_slower_as_far_as_it_was_told(
    lab: RunningLab, service: Any
) -> None:
    lab.control.call("datastore-set", name="nfs1", read_latency=5, read_latency_each_stream=7)
    nfs1, counter = lab.lab.datastore("nfs1"), latency_counter(service).key
    facts = {"host": "h", "datastore": "nfs1", "vm": "web", "direction": "read", "file": "f"}
    with lab.lab.calls.stream(transport="nfc", **facts):
        assert samples(service, counter=counter)[nfs1.uuid] == [12]
    assert samples(service, counter=counter)[nfs1.uuid] == [5]


def test_a_counter_that_there_is_not_is_refused(service: Any) -> None:
    with pytest.raises(vmodl.fault.InvalidArgument):
        samples(service, counter=1)
