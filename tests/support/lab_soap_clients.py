"""Stock pyVmomi clients for tests against the lab."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pyVim.connect import Disconnect, SmartConnect
from pyVmomi import vim, vmodl

from holdfast_lab.server import RunningLab

PC = vmodl.query.PropertyCollector
TASK_SECONDS_MAX = 60


def lax_context() -> ssl.SSLContext:
    """A context that trusts anybody: the lab's certificate is not what these tests are about."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def login(lab: RunningLab, *, user: str = "", password: str = "") -> Any:
    """A service instance of a new session."""
    return SmartConnect(
        host="127.0.0.1",
        port=lab.port,
        user=user or lab.user,
        pwd=password or lab.password,
        sslContext=lax_context(),
    )


@contextmanager
def logged_in(lab: RunningLab) -> Iterator[Any]:
    """A service instance while the block runs."""
    service = login(lab)
    try:
        yield service
    finally:
        Disconnect(service)


def find(service: Any, kind: Any, name: str) -> Any:
    """The entity of one type with this name."""
    content = service.RetrieveContent()
    view = content.viewManager.CreateContainerView(content.rootFolder, [kind], True)
    try:
        for each in properties_of(service, view, kind, ["name"]):
            if each["name"] == name:
                return each["obj"]
    finally:
        view.Destroy()
    raise LookupError(f"no {kind.__name__} is named {name}")


def view_spec(view: Any, kind: Any, paths: list[str]) -> Any:
    """A filter over everything that a view shows."""
    step = PC.TraversalSpec(name="view", path="view", type=type(view), skip=False)
    return PC.FilterSpec(
        objectSet=[PC.ObjectSpec(obj=view, skip=True, selectSet=[step])],
        propSet=[PC.PropertySpec(type=kind, pathSet=paths)],
    )


def object_spec(reference: Any, paths: list[str]) -> Any:
    """A filter over one object."""
    return PC.FilterSpec(
        objectSet=[PC.ObjectSpec(obj=reference)],
        propSet=[PC.PropertySpec(type=type(reference), pathSet=paths)],
    )


def properties_of(service: Any, view: Any, kind: Any, paths: list[str]) -> list[dict[str, Any]]:
    """Properties of everything in a view, with the reference under ``obj``."""
    collector = service.RetrieveContent().propertyCollector
    answer = collector.RetrievePropertiesEx([view_spec(view, kind, paths)], PC.RetrieveOptions())
    found = []
    while answer is not None:
        found += [
            {"obj": each.obj, **{prop.name: prop.val for prop in each.propSet}}
            for each in answer.objects
        ]
        if not answer.token:
            break
        answer = collector.ContinueRetrievePropertiesEx(answer.token)
    return found


def read(service: Any, reference: Any, *paths: str) -> dict[str, Any]:
    """Some properties of one object; unset ones are absent."""
    collector = service.RetrieveContent().propertyCollector
    answer = collector.RetrieveContents([object_spec(reference, list(paths))])
    return {prop.name: prop.val for prop in answer[0].propSet}


def wait(service: Any, task: Any) -> Any:
    """The result of a task. Raises: the task's fault."""
    collector = service.RetrieveContent().propertyCollector.CreatePropertyCollector()
    try:
        collector.CreateFilter(object_spec(task, ["info.state"]), True)
        version = ""
        while True:
            update = collector.WaitForUpdatesEx(
                version, PC.WaitOptions(maxWaitSeconds=TASK_SECONDS_MAX)
            )
            assert update is not None, "the task did not end"
            version = update.version
            for change in update.filterSet[0].objectSet[0].changeSet:
                if change.val in ("success", "error"):
                    info = read(service, task, "info.result", "info.error")
                    if change.val == "error":
                        raise info["info.error"]
                    return info.get("info.result")
    finally:
        collector.Destroy()


def machine(service: Any, name: str) -> Any:
    """The VM with this name."""
    return find(service, vim.VirtualMachine, name)


def disks_of(config: Any) -> list[Any]:
    """The disks of a ``config``, by key."""
    return [each for each in config.hardware.device if isinstance(each, vim.vm.device.VirtualDisk)]
