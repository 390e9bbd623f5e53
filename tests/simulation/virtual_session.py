"""The product's own session at vSphere, with a model behind it instead of SOAP.

Logins that end, calls that are repeated, tasks whose reply was lost: all that is the product's code. What is replaced is
the one place where a call leaves, and how properties become facts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final

from pyVmomi import vim

from holdfast_common.errors import SourceGone, TimedOut, VsphereFailed, VsphereUnavailable
from holdfast_controller.facts import VmFacts
from holdfast_controller.vsphere import faults
from holdfast_controller.vsphere.devices import DatastoreNames
from holdfast_controller.vsphere.foreign import reference
from holdfast_controller.vsphere.inventory import Surroundings
from holdfast_controller.vsphere.properties import ObjectProperties
from holdfast_controller.vsphere.session import REPEATABLE, Login, VsphereSession
from simulation.virtual_disks import BLOCK_BYTES
from simulation.virtual_facts import DATASTORE, HOST_FACTS, inventory_of, vm_facts
from simulation.virtual_time import BEGIN, Kernel, Violation
from simulation.virtual_vsphere import VirtualVsphere

if TYPE_CHECKING:
    from collections.abc import Iterator

AROUND: Final = Surroundings(
    names=DatastoreNames([DATASTORE]),
    hosts={HOST_FACTS.moref: HOST_FACTS},
    places={},
    datacenters={},
)
TASK_LOOK_SECONDS: Final = 1.0
_READS: Final = frozenset({"Read", "ReadMany", "ReadEverything", "ReadVm"})


class _Tasks:
    """In place of the loop of WaitForUpdatesEx: a task's end is seen a moment later."""

    def __init__(self, session: VirtualSession) -> None:
        self._session = session

    def wait(self, task: Any, *, timeout_seconds: float) -> Any:
        """Raises: TimedOut, VsphereUnavailable."""
        kernel, model = self._session.kernel, self._session.model
        found = model.tasks[str(task._moId)]
        ends_at = kernel.now + timeout_seconds
        gives_up_at = kernel.now + self._session.patience_seconds
        while True:
            kernel.step("wait for a task")
            if kernel.now < model.wrong.down_until:
                gives_up_at = min(gives_up_at, kernel.now + self._session.patience_seconds)
                if kernel.now >= gives_up_at:
                    raise VsphereUnavailable("vSphere does not answer")
            elif found.state != "running":
                return SimpleNamespace(values={"info.state": found.state}, fault=found.fault)
            if kernel.now >= ends_at:
                raise TimedOut("a task did not end in time")
            kernel.sleep(model.random.uniform(0.1, TASK_LOOK_SECONDS))

    def stop(self) -> None:
        """Nothing of it goes on."""


class VirtualSession(VsphereSession):
    """One controller's session."""

    kernel: Kernel
    model: VirtualVsphere

    @classmethod
    def of(cls, kernel: Kernel, model: VirtualVsphere) -> type[VirtualSession]:
        """The class for one simulation, as `Vcenters` makes them."""
        return type("VirtualSession", (cls,), {"kernel": kernel, "model": model})

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named, keep_alive_seconds=1e9)
        self._tasks = _Tasks(self)  # type: ignore[assignment]  # it waits like one

    def wait_for_task(self, task: Any, *, what: str, timeout_seconds: float = 3600.0) -> Any:
        watched = self._tasks.wait(task, timeout_seconds=timeout_seconds)
        if watched.values["info.state"] == "error":
            fault = str(getattr(watched, "fault", ""))
            if fault == "SourceGone":
                raise SourceGone(f"{what} failed: the object is no longer there")
            raise VsphereFailed(f"{what} failed", fault=fault)
        return None

    def _log_in(self) -> Login:
        self._logins += 1
        self.kernel.sleep(self.model.random.uniform(0.01, 0.1))
        if self.kernel.now < self.model.wrong.down_until:
            raise VsphereUnavailable("vSphere does not answer")
        number = len(self.model.logins) + 1 + self.model.counts.get("logins ended", 0)
        self.model.logins.add(number)
        return Login(None, None, number)

    def _invoke(self, login: Login, target: Any, method: str, arguments: Mapping[str, Any]) -> Any:
        kernel, model = self.kernel, self.model
        kernel.step(f"before {method}")
        kernel.sleep(model.random.uniform(0.005, 0.03))
        if kernel.now < model.wrong.down_until:
            raise VsphereUnavailable(f"{method}: vSphere does not answer")
        if login.number not in model.logins:
            raise faults.SessionLost("the login at vSphere ended", call=method)
        try:
            found = self._answer(target, method, arguments)
        except Violation as error:  # the product would take it for a failed job
            kernel.failure = kernel.failure or error
            raise
        if method not in _READS:
            kernel.trace.append(f"{kernel.now:.3f} {method} {target._moId}")
        kernel.step(f"after {method}")
        if model.wrong.replies_lost and method not in _READS:
            model.wrong.replies_lost -= 1
            model.counts["replies lost"] = model.counts.get("replies lost", 0) + 1
            raise VsphereUnavailable(f"{method}: vSphere does not answer")
        return found

    def _answer(self, target: Any, method: str, arguments: Mapping[str, Any]) -> Any:
        model = self.model
        moref = str(target._moId)
        if method == "Logout":
            return None
        if method == "CurrentTime":
            return BEGIN + timedelta(seconds=self.kernel.now)
        if method == "Read":
            return model.read(moref, arguments["paths"])
        if method == "ReadVm":
            return vm_facts(model.vm(moref))
        if method == "ReadMany":
            return self._read_many(arguments["references"], arguments["paths"])
        if method == "ReadEverything":
            return [
                ObjectProperties(
                    vim.VirtualMachine(vm.moref, None), {"config.instanceUuid": vm.instance_uuid}
                )
                for vm in model.vms.values()
            ]
        if method == "QueryChangedDiskAreas":
            return self._areas(moref, arguments)
        return model.start_task(moref, method, arguments)

    def _read_many(
        self, references: Sequence[Any], paths: tuple[str, ...]
    ) -> list[ObjectProperties]:
        found = []
        for each in references:
            try:
                found.append(ObjectProperties(each, self.model.read(str(each._moId), paths)))
            except SourceGone:
                continue
        return found

    def _areas(self, moref: str, arguments: Mapping[str, Any]) -> Any:
        blocks = self.model.changed_areas(
            moref,
            str(arguments["snapshot"]._moId),
            int(arguments["deviceKey"]),
            since=str(arguments["changeId"]),
        )
        start = int(arguments["startOffset"])
        vm = self.model.vm(moref)
        disk = next(each for each in vm.disks if each.key == int(arguments["deviceKey"]))
        return SimpleNamespace(
            startOffset=start,
            length=disk.count * BLOCK_BYTES - start,
            changedArea=[
                SimpleNamespace(start=n * BLOCK_BYTES, length=BLOCK_BYTES)
                for n in blocks
                if n * BLOCK_BYTES >= start
            ],
        )


assert not _READS & REPEATABLE


def _ask(session: VsphereSession, target: Any, method: str, **arguments: Any) -> Any:
    return session.in_one_login(lambda: session.call_in_login(target, method, **arguments))


def read_one(session: VsphereSession, target: Any, paths: Sequence[str]) -> Mapping[str, Any]:
    """In place of `properties.read_one`."""
    found: Mapping[str, Any] = _ask(session, target, "Read", paths=tuple(paths))
    return found


def read_many(
    session: VsphereSession, references: Sequence[Any], paths: Sequence[str]
) -> list[ObjectProperties]:
    """In place of `properties.read_many`."""
    if not references:
        return []
    found: list[ObjectProperties] = _ask(
        session, references[0], "ReadMany", references=tuple(references), paths=tuple(paths)
    )
    return found


def read_everything(
    session: VsphereSession, paths: Mapping[type, Sequence[str]]
) -> list[ObjectProperties]:
    """In place of `properties.read_everything`: VMs and their identities."""
    del paths
    root = reference(vim.Folder, "group-d1")
    found: list[ObjectProperties] = _ask(session, root, "ReadEverything")
    return found


def read_vm_around(session: VsphereSession, moref: str) -> tuple[VmFacts, Surroundings]:
    """In place of `inventory.read_vm_around`."""
    return read_vm(session, moref), AROUND


def read_vm(session: VsphereSession, moref: str, surroundings: object = None) -> VmFacts:
    """In place of `inventory.read_vm`."""
    del surroundings
    found: VmFacts = _ask(session, reference(vim.VirtualMachine, moref), "ReadVm")
    return found


def read_inventory(model: VirtualVsphere) -> Callable[[VsphereSession], object]:
    """In place of `inventory.read_inventory`."""

    def read(session: VsphereSession) -> object:
        _ask(session, reference(vim.Folder, "group-d1"), "ReadEverything")
        return inventory_of(model.vms.values(), seconds=model.kernel.now)

    return read


@contextmanager
def nothing_watched(*_: object) -> Iterator[Any]:
    """In place of the watch over free space: there is always enough."""
    yield SimpleNamespace(is_low=False, check=lambda: None, judged=lambda result: result)
