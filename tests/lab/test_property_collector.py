"""Reading properties in pages and waiting for their changes, with stock pyVmomi."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from pyVmomi import vim, vmodl

from holdfast_lab.server import RunningLab
from support.lab_soap_clients import PC, logged_in, machine, object_spec, read, view_spec, wait

WAIT = PC.WaitOptions(maxWaitSeconds=20)
NO_WAIT = PC.WaitOptions(maxWaitSeconds=0)


def all_entities(service: Any) -> Any:
    content = service.RetrieveContent()
    return content.viewManager.CreateContainerView(content.rootFolder, [], True)


def test_every_property_of_every_entity_can_be_read_and_nothing_is_missing(
    lab: RunningLab, service: Any
) -> None:
    view = all_entities(service)
    spec = view_spec(view, vim.ManagedEntity, [])
    spec.propSet[0].all = True
    found = service.content.propertyCollector.RetrieveContents([spec])
    assert len(found) == len(view.view) == 16
    assert not [each for each in found if each.missingSet]
    names = {prop.name for each in found for prop in each.propSet}
    assert {"config", "layoutEx", "summary", "vmFolder", "browser"} <= names


def test_pages_hold_as_many_objects_as_asked_and_end_without_a_token(service: Any) -> None:
    collector = service.content.propertyCollector
    spec = view_spec(all_entities(service), vim.ManagedEntity, ["name"])
    answer = collector.RetrievePropertiesEx([spec], PC.RetrieveOptions(maxObjects=6))
    sizes = [len(answer.objects)]
    while answer.token:
        answer = collector.ContinueRetrievePropertiesEx(answer.token)
        sizes.append(len(answer.objects))
    assert sizes == [6, 6, 4]


def test_a_token_is_good_once_and_can_be_cancelled(service: Any) -> None:
    collector = service.content.propertyCollector
    spec = view_spec(all_entities(service), vim.ManagedEntity, ["name"])
    answer = collector.RetrievePropertiesEx([spec], PC.RetrieveOptions(maxObjects=2))
    collector.CancelRetrievePropertiesEx(answer.token)
    with pytest.raises(vmodl.fault.InvalidArgument):
        collector.ContinueRetrievePropertiesEx(answer.token)


@pytest.mark.parametrize(
    "path", ["nonsense", "config.nonsense", "config.hardware.device.nonsense.x", "", "name."]
)
def test_an_unknown_path_is_an_invalid_property(service: Any, path: str) -> None:
    with pytest.raises(vmodl.query.InvalidProperty):
        read(service, machine(service, "web"), path)


def test_dotted_paths_and_keys_reach_into_data_objects(service: Any) -> None:
    found = read(
        service,
        machine(service, "db"),
        "config.changeTrackingEnabled",
        "config.hardware.device[2000].backing.fileName",
        "config.hardware.device[4000].macAddress",
        "runtime.powerState",
        "snapshot.currentSnapshot",
        "config.firmware",
        "guest.toolsRunningStatus",
        "resourcePool",
        "network",
    )
    assert found["config.hardware.device[2000].backing.fileName"] == "[nfs1] db/db-000001.vmdk"
    assert found["config.hardware.device[4000].macAddress"].startswith("00:50:56:")
    assert found["config.changeTrackingEnabled"] is False
    assert found["runtime.powerState"] == "poweredOn"
    assert found["config.firmware"] == "efi"
    assert isinstance(found["snapshot.currentSnapshot"], vim.vm.Snapshot)
    assert found["guest.toolsRunningStatus"] == "guestToolsRunning"
    assert isinstance(found["network"][0], vim.Network)


def test_an_unset_property_is_absent(service: Any) -> None:
    assert read(service, machine(service, "web"), "snapshot", "name") == {"name": "web"}


def test_a_dead_reference_is_not_found_unless_it_may_be_missing(service: Any) -> None:
    collector = service.content.propertyCollector
    dead = vim.VirtualMachine("vm-99999", service._stub)
    spec = object_spec(dead, ["name"])
    with pytest.raises(vmodl.fault.ManagedObjectNotFound) as raised:
        collector.RetrieveContents([spec])
    assert raised.value.obj._moId == "vm-99999"
    spec.reportMissingObjectsInResults = True
    assert not collector.RetrieveContents([spec])


def test_recursive_named_traversals_visit_each_object_once(service: Any) -> None:
    content = service.RetrieveContent()
    folders = PC.TraversalSpec(
        name="folders",
        type=vim.Folder,
        path="childEntity",
        skip=False,
        selectSet=[PC.SelectionSpec(name="folders"), PC.SelectionSpec(name="vms")],
    )
    vms = PC.TraversalSpec(
        name="vms",
        type=vim.Datacenter,
        path="vmFolder",
        skip=False,
        selectSet=[PC.SelectionSpec(name="folders")],
    )
    spec = PC.FilterSpec(
        objectSet=[PC.ObjectSpec(obj=content.rootFolder, skip=True, selectSet=[folders, vms])],
        propSet=[PC.PropertySpec(type=vim.VirtualMachine, pathSet=["name"])],
    )
    found = content.propertyCollector.RetrieveContents([spec])
    assert [each.propSet[0].val for each in found] == ["web", "db", "proxy"]


def test_an_unknown_selection_name_is_an_invalid_argument(service: Any) -> None:
    content = service.RetrieveContent()
    spec = PC.FilterSpec(
        objectSet=[
            PC.ObjectSpec(obj=content.rootFolder, selectSet=[PC.SelectionSpec(name="nobody")])
        ],
        propSet=[PC.PropertySpec(type=vim.Folder, pathSet=["name"])],
    )
    with pytest.raises(vmodl.fault.InvalidArgument):
        content.propertyCollector.RetrieveContents([spec])


# waiting ----------------------------------------------------------------------------------


def changes(update: Any) -> dict[str, Any]:
    return {
        change.name: change.val
        for each in update.filterSet
        for item in each.objectSet
        for change in item.changeSet
    }


def kinds(update: Any) -> list[str]:
    return [item.kind for each in update.filterSet for item in each.objectSet]


def test_the_first_answer_enters_all_objects_and_later_ones_only_say_what_changed(
    lab: RunningLab, service: Any
) -> None:
    collector = service.content.propertyCollector.CreatePropertyCollector()
    web = machine(service, "web")
    collector.CreateFilter(object_spec(web, ["name", "config.annotation"]), True)
    first = collector.WaitForUpdatesEx("", WAIT)
    assert kinds(first) == ["enter"]
    assert changes(first) == {"name": "web", "config.annotation": ""}
    assert not first.truncated
    assert collector.WaitForUpdatesEx(first.version, NO_WAIT) is None
    wait(service, web.ReconfigVM_Task(vim.vm.ConfigSpec(annotation="noted")))
    second = collector.WaitForUpdatesEx(first.version, WAIT)
    assert kinds(second) == ["modify"]
    assert changes(second) == {"config.annotation": "noted"}
    assert second.version != first.version


def test_an_answer_that_was_lost_can_be_asked_for_again(lab: RunningLab, service: Any) -> None:
    collector = service.content.propertyCollector.CreatePropertyCollector()
    web = machine(service, "web")
    collector.CreateFilter(object_spec(web, ["config.annotation"]), True)
    first = collector.WaitForUpdatesEx("", WAIT)
    wait(service, web.ReconfigVM_Task(vim.vm.ConfigSpec(annotation="one")))
    lost = collector.WaitForUpdatesEx(first.version, WAIT)
    wait(service, web.ReconfigVM_Task(vim.vm.ConfigSpec(annotation="two")))
    again = collector.WaitForUpdatesEx(first.version, WAIT)
    assert (changes(lost), changes(again)) == (
        {"config.annotation": "one"},
        {"config.annotation": "two"},
    )
    assert collector.WaitForUpdatesEx(again.version, NO_WAIT) is None


def test_a_version_that_was_never_given_out_is_refused(service: Any) -> None:
    collector = service.content.propertyCollector.CreatePropertyCollector()
    for version in ("99", "x"):
        with pytest.raises(vmodl.query.InvalidCollectorVersion):
            collector.WaitForUpdatesEx(version, NO_WAIT)


def test_truncated_answers_together_hold_every_object_once(service: Any) -> None:
    collector = service.content.propertyCollector.CreatePropertyCollector()
    collector.CreateFilter(view_spec(all_entities(service), vim.ManagedEntity, ["name"]), True)
    options = PC.WaitOptions(maxWaitSeconds=0, maxObjectUpdates=5)
    version, seen, flags = "", [], []
    while (update := collector.WaitForUpdatesEx(version, options)) is not None:
        version = update.version
        flags.append(bool(update.truncated))
        seen += [item.obj._moId for each in update.filterSet for item in each.objectSet]
    assert len(seen) == len(set(seen)) == 16
    assert flags == [True, True, True, False]


def test_objects_enter_and_leave_a_view(lab: RunningLab, service: Any) -> None:
    content = service.RetrieveContent()
    view = content.viewManager.CreateContainerView(content.rootFolder, [vim.VirtualMachine], True)
    collector = content.propertyCollector.CreatePropertyCollector()
    collector.CreateFilter(view_spec(view, vim.VirtualMachine, ["name"]), True)
    first = collector.WaitForUpdatesEx("", WAIT)
    lab.control.call("vm-add", machine={"name": "late", "datastore": "nfs2", "power": "off"})
    entered = collector.WaitForUpdatesEx(first.version, WAIT)
    assert (kinds(entered), changes(entered)) == (["enter"], {"name": "late"})
    lab.control.call("vm-remove", vm="late")
    left = collector.WaitForUpdatesEx(entered.version, WAIT)
    assert kinds(left) == ["leave"]
    assert collector.WaitForUpdatesEx(left.version, NO_WAIT) is None


def test_who_came_and_went_unseen_is_not_mentioned(lab: RunningLab, service: Any) -> None:
    content = service.RetrieveContent()
    view = content.viewManager.CreateContainerView(content.rootFolder, [vim.VirtualMachine], True)
    collector = content.propertyCollector.CreatePropertyCollector()
    collector.CreateFilter(view_spec(view, vim.VirtualMachine, ["name"]), True)
    first = collector.WaitForUpdatesEx("", WAIT)
    lab.control.call("vm-add", machine={"name": "brief", "datastore": "nfs2", "power": "off"})
    lab.control.call("vm-remove", vm="brief")
    assert collector.WaitForUpdatesEx(first.version, NO_WAIT) is None


def test_a_property_that_becomes_unset_is_assigned_nothing(lab: RunningLab, service: Any) -> None:
    web = machine(service, "web")
    lab.control.call("user-snapshot", vm="web", name="short")
    collector = service.content.propertyCollector.CreatePropertyCollector()
    collector.CreateFilter(object_spec(web, ["snapshot"]), True)
    first = collector.WaitForUpdatesEx("", WAIT)
    assert changes(first)["snapshot"].rootSnapshotList[0].name == "short"
    lab.control.call("user-snapshot", vm="web", name="short", action="remove")
    update = collector.WaitForUpdatesEx(first.version, WAIT)
    assert changes(update) == {"snapshot": None}


def test_a_waiting_call_is_answered_at_once_when_something_changes(
    lab: RunningLab, service: Any
) -> None:
    web = machine(service, "web")
    collector = service.content.propertyCollector.CreatePropertyCollector()
    collector.CreateFilter(object_spec(web, ["config.annotation"]), True)
    version = collector.WaitForUpdatesEx("", WAIT).version
    answers: list[Any] = []
    waiter = threading.Thread(
        target=lambda: answers.append(
            collector.WaitForUpdatesEx(version, PC.WaitOptions(maxWaitSeconds=60))
        )
    )
    waiter.start()
    with logged_in(lab) as other:
        wait(other, machine(other, "web").ReconfigVM_Task(vim.vm.ConfigSpec(annotation="woken")))
    waiter.join(10)
    assert not waiter.is_alive()
    assert changes(answers[0]) == {"config.annotation": "woken"}


def test_cancelling_ends_a_waiting_call(lab: RunningLab, service: Any) -> None:
    collector = service.content.propertyCollector.CreatePropertyCollector()
    faults: list[Any] = []

    def waits() -> None:
        try:
            collector.WaitForUpdatesEx("", PC.WaitOptions(maxWaitSeconds=60))
        except vmodl.fault.RequestCanceled as fault:
            faults.append(fault)

    waiter = threading.Thread(target=waits)
    waiter.start()
    while waiter.is_alive():  # a cancel before the call has begun to wait ends nothing
        collector.CancelWaitForUpdates()
        waiter.join(0.05)
    assert faults


def test_filters_of_one_session_are_unknown_to_another(lab: RunningLab, service: Any) -> None:
    made = service.content.propertyCollector.CreateFilter(
        object_spec(machine(service, "web"), ["name"]), True
    )
    with logged_in(lab) as other:
        foreign = PC.Filter(made._moId, other._stub)
        with pytest.raises(vmodl.fault.ManagedObjectNotFound):
            foreign.Destroy()
        assert other.content.propertyCollector.WaitForUpdatesEx("", NO_WAIT) is None
    made.Destroy()


def test_a_deleted_object_leaves_its_filter(lab: RunningLab, service: Any) -> None:
    lab.control.call("vm-add", machine={"name": "doomed", "datastore": "nfs2", "power": "off"})
    collector = service.content.propertyCollector.CreatePropertyCollector()
    collector.CreateFilter(object_spec(machine(service, "doomed"), ["name"]), True)
    version = collector.WaitForUpdatesEx("", WAIT).version
    lab.control.call("vm-remove", vm="doomed")
    assert kinds(collector.WaitForUpdatesEx(version, WAIT)) == ["leave"]
