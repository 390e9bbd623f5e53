"""What a case of the referee is: a piece of the product's work, and the calls that it judges."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pyVmomi import vim

from holdfast_common.errors import HoldfastError
from holdfast_controller.facts import SnapshotFacts, VmFacts
from holdfast_controller.vsphere import (
    configuration,
    datastore_files,
    devices,
    effects,
    inventory,
    properties,
    snapshot,
)
from holdfast_controller.vsphere.foreign import reference
from holdfast_controller.vsphere.session import Account, VcenterAddress, VsphereSession
from referee.refereed_session import Outcomes, RefereedSession

PATIENCE_SECONDS: Final = 20.0


@dataclass(frozen=True, kw_only=True)
class Simulator:
    """The running simulator, a session of the product's at it, and what became of its calls."""

    address: VcenterAddress
    account: Account
    session: RefereedSession
    outcomes: Outcomes
    folder: Path
    machines: int
    single_host: bool

    @contextmanager
    def another_session(self, **options: Any) -> Iterator[VsphereSession]:
        """One more session; its calls count too."""
        with open_session(self.address, self.account, self.outcomes, **options) as session:
            yield session

    def vm(self, number: int = 0) -> VmFacts:
        """A VM of the simulator's, read anew."""
        machines: dict[type, Sequence[str]] = {vim.VirtualMachine: ("name",)}
        found = properties.read_everything(self.session, machines)
        morefs = sorted(each.moref for each in found)
        return inventory.read_vm(self.session, morefs[number])


def open_session(
    address: VcenterAddress, account: Account, outcomes: Outcomes, **options: Any
) -> RefereedSession:
    """A session of the product's whose calls are noted; not yet logged in."""
    return RefereedSession(
        address, account, outcomes=outcomes, patience_seconds=PATIENCE_SECONDS, **options
    )


Work = Callable[[Simulator], None]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One piece of the product's work and the calls that it judges."""

    title: str
    methods: frozenset[str]
    work: Work


CASES: list[Case] = []


def case(*methods: str) -> Callable[[Work], Work]:
    """Register a case for these calls; its docstring is its title."""

    def register(work: Work) -> Work:
        title = (work.__doc__ or work.__name__).strip()
        CASES.append(Case(title=title, methods=frozenset(methods), work=work))
        return work

    return register


class SimulatorsFault(Exception):
    """The simulator does the call but not what vSphere does; the case ends here."""


def plain_snapshot(session: VsphereSession, vm: VmFacts) -> SnapshotFacts:
    """A snapshot's facts without the proof that disks are frozen, which the simulator fails."""
    machine = reference(vim.VirtualMachine, vm.moref)
    name = f"areas of {vm.name}"

    def landed() -> str | None:
        nodes = inventory.read_vm(session, vm.moref).snapshots
        return next((node.moref for node in nodes if node.name == name), None)

    moref = effects.run_task(
        session,
        machine,
        "CreateSnapshot_Task",
        what="a snapshot",
        landed=landed,
        name=name,
        description="",
        memory=False,
        quiesce=False,
    )
    config = snapshot.read_config(session, moref)
    around = inventory.read_surroundings(session)
    return SnapshotFacts(
        moref=moref,
        vm=inventory.read_vm(session, vm.moref, around),
        created_at="2026-01-01T00:00:00Z",
        disks=devices.disk_facts(config.hardware.device, around.names),
        configuration=configuration.configuration_json(config),
        asked="crash",
        reached="crash",
        evidence="",
    )


def place_of_vm(session: VsphereSession, vm: VmFacts) -> datastore_files.DatastorePlace:
    assert vm.vmx is not None
    around = inventory.read_surroundings(session)
    return datastore_files.place_of(around, vm.vmx.datastore_moref)


@contextmanager
def expected(kind: type[HoldfastError]) -> Iterator[list[HoldfastError]]:
    """The block must end with this error, which is in the list then."""
    caught: list[HoldfastError] = []
    try:
        yield caught
    except kind as error:
        caught.append(error)
    assert caught, f"{kind.__name__} was expected"
