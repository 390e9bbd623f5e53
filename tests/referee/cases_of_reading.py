"""Cases of the calls that log in, look, wait and read: see `case_table`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final
from unittest import mock

from pyVmomi import vim

from holdfast_common.errors import (
    AuthenticationFailed,
    CapabilityAbsent,
    CertificateMismatch,
    VsphereFailed,
)
from holdfast_common.job_spec import AreaSource
from holdfast_common.logs import Secret
from holdfast_controller.decide.privileges import NEEDED_RIGHTS, RightOn
from holdfast_controller.facts import DiskDecision, VmFacts
from holdfast_controller.vsphere import (
    account_rights,
    change_tracking,
    changed_areas,
    datastore_files,
    datastore_folders,
    effects,
    inventory,
    properties,
    server_clock,
    snapshot,
    snapshot_removal,
    task_watcher,
    transfer_leases,
)
from holdfast_controller.vsphere.foreign import Reference, reference
from holdfast_controller.vsphere.free_space import read_free_space
from holdfast_controller.vsphere.read_latency import ReadLatencies
from holdfast_controller.vsphere.session import Account, VsphereSession
from referee.case_table import (
    Simulator,
    SimulatorsFault,
    case,
    expected,
    place_of_vm,
    plain_snapshot,
)
from support.vsphere_sessions import job_ledger

IDLE_SECONDS: Final = 0.2
CRASH: Final = snapshot.ConsistencyWish(asked="crash", lower_allowed=True)
FILESYSTEM: Final = snapshot.ConsistencyWish(asked="filesystem", lower_allowed=True)


@case("RetrieveServiceContent", "Login", "Logout")
def pinned_login(simulator: Simulator) -> None:
    """A login behind the pinned certificate; a wrong password and a wrong certificate are refused."""
    with simulator.another_session() as session:
        assert session.is_vcenter is not simulator.single_host
    wrong = Account(user_name=simulator.account.user_name, password=Secret(b"wrong"))
    with expected(AuthenticationFailed), VsphereSession(simulator.address, wrong):
        pass
    swapped = replace(simulator.address, certificate_sha256="0" * 64)
    with expected(CertificateMismatch), VsphereSession(swapped, simulator.account):
        pass


@case("CreateContainerView", "RetrievePropertiesEx", "DestroyView")
def whole_inventory(simulator: Simulator) -> None:
    """The whole inventory in one call."""
    found = inventory.read_inventory(simulator.session)
    assert len(found.vms) == simulator.machines, f"{len(found.vms)} VMs"
    assert found.hosts and found.datastores and found.server.instance_uuid
    first = found.vms[0]
    assert first.disks and first.disks[0].capacity_bytes > 0 and first.vmx is not None
    assert first.host_name and first.place and first.datacenter_moref
    assert inventory.find_vm(simulator.session, instance_uuid=first.instance_uuid) == first


@case("HasPrivilegeOnEntities")
def rights_of_the_account(simulator: Simulator) -> None:
    """The rights that an account needs, asked for each object; the simulator's account has all."""
    vm = simulator.vm()
    wanted = [right.privilege for right in NEEDED_RIGHTS if right.on is RightOn.VM]
    found = account_rights.lacking(simulator.session, RightOn.VM, [vm.moref], wanted)
    assert not found, f"{found}"


@case("ContinueRetrievePropertiesEx")
def pages(simulator: Simulator) -> None:
    """An inventory that is larger than one answer."""
    assert len(inventory.read_inventory(simulator.session).vms) == simulator.machines
    if not simulator.outcomes.passed.get("ContinueRetrievePropertiesEx"):
        raise SimulatorsFault("everything comes in one answer, however much was asked for")


@case("RefreshStorageInfo", "RefreshDatastore")
def free_space(simulator: Simulator) -> None:
    """How much room a VM's datastores have, measured anew."""
    vm = simulator.vm()
    stores = {link.datastore_moref for disk in vm.disks for link in disk.chain}
    found = read_free_space(
        simulator.session,
        vm_moref=vm.moref,
        datastore_morefs=stores,
        frozen_links={disk.device_key: 0 for disk in vm.disks},
    )
    assert {each.name for each in found} == set(vm.datastore_names)
    assert all(0 < each.free_bytes <= each.capacity_bytes for each in found)
    assert sum(each.redo_log_bytes for each in found) > 0, "the files of no disk were found"


@case("QueryPerf")
def read_latencies(simulator: Simulator) -> None:
    """How long reads take, as the hosts measure it."""
    hosts = [host.moref for host in inventory.read_inventory(simulator.session).hosts]
    try:
        found = ReadLatencies(simulator.session).read(hosts)
    except CapabilityAbsent as error:
        raise SimulatorsFault(str(error)) from error
    assert all(milliseconds >= 0 for milliseconds in found.values())
    if not found:
        raise SimulatorsFault("its hosts have no samples of how long reads take")


@case("CurrentTime")
def clock(simulator: Simulator) -> None:
    """The server's clock, and the keep-alive of an idle login."""
    assert server_clock.server_time(simulator.session).year >= 2024
    before = simulator.outcomes.passed.get("CurrentTime", 0)
    with simulator.another_session(keep_alive_seconds=0.05) as session:
        for _ in range(100):
            if simulator.outcomes.passed.get("CurrentTime", 0) > before:
                return
            session.stop.wait(0.05)
    raise AssertionError("the login was not kept alive")


@case("Login")
def ended_login(simulator: Simulator) -> None:
    """A login that the server ended is replaced, and the work goes on."""
    with simulator.another_session() as session:
        manager = session.content().sessionManager
        key = properties.read_one(session, manager, ["currentSession"])["currentSession"].key
        simulator.session.call(manager, "TerminateSession", sessionId=[key])
        logins = simulator.outcomes.passed["Login"]
        inventory.read_inventory(session)
        assert simulator.outcomes.passed["Login"] == logins + 1


@case("ReconfigVM_Task")
def tracking(simulator: Simulator) -> None:
    """Change tracking is switched on and read again."""
    # an old simulator denies the capability, which says nothing about the call
    vm = replace(simulator.vm(), change_tracking_supported=True)
    assert change_tracking.ensure_enabled(simulator.session, vm)
    assert change_tracking.is_enabled(simulator.session, vm.moref)


@case(
    "CreatePropertyCollector",
    "CreateFilter",
    "WaitForUpdatesEx",
    "DestroyPropertyFilter",
    "DestroyPropertyCollector",
    "CancelWaitForUpdates",
)
def tasks(simulator: Simulator) -> None:
    """One loop waits for all tasks, gives its filters and its collector back, and is cancelled."""
    machine = reference(vim.VirtualMachine, simulator.vm(1).moref)

    def change(session: VsphereSession) -> None:
        spec = vim.vm.ConfigSpec(annotation="refereed")
        task = session.call(machine, "ReconfigVM_Task", spec=spec)
        session.wait_for_task(task, what="a change", timeout_seconds=20)
        effects.wait_until_idle(session, machine, timeout_seconds=20)

    destroyed = simulator.outcomes.passed.get("DestroyPropertyCollector", 0)
    with (
        mock.patch.object(task_watcher, "IDLE_SECONDS", IDLE_SECONDS),
        simulator.another_session() as session,
    ):
        change(session)
        change(session)
        for _ in range(100):
            if simulator.outcomes.passed.get("DestroyPropertyCollector", 0) > destroyed:
                break
            session.stop.wait(0.05)
    with simulator.another_session() as session:
        change(session)


@case("CreateSnapshot_Task", "RemoveSnapshot_Task")
def crash_snapshot(simulator: Simulator) -> None:
    """A snapshot without quiescing, ledger first, removed whatever happens."""
    _snapshot_and_back(simulator, simulator.vm(2), CRASH)


@case("CreateSnapshotEx_Task", "RemoveSnapshot_Task")
def quiesced_snapshot(simulator: Simulator) -> None:
    """A quiesced snapshot."""
    vm = replace(simulator.vm(3), tools_running="guestToolsRunning", power_state="poweredOn")
    _snapshot_and_back(simulator, vm, FILESYSTEM)


def _snapshot_and_back(simulator: Simulator, vm: VmFacts, wish: snapshot.ConsistencyWish) -> None:
    ledger = job_ledger(simulator.folder)
    unfrozen = ""
    try:
        with snapshot.temporary_snapshot(simulator.session, ledger, vm=vm, wish=wish) as made:
            assert made.disks
    except VsphereFailed as error:
        if "does not freeze" not in error.message:
            raise
        unfrozen = error.message
    left = inventory.read_vm(simulator.session, vm.moref)
    assert not left.snapshots, "our snapshot is left"
    assert not ledger.open_entries(), "the ledger is not clean"
    if unfrozen:
        raise SimulatorsFault("a snapshot makes no redo log there, so no disk is frozen")


@case("ConsolidateVMDisks_Task")
def consolidation(simulator: Simulator) -> None:
    """Merging what removed snapshots left."""
    snapshot_removal.consolidate(simulator.session, simulator.vm(4))


@case("QueryChangedDiskAreas")
def areas(simulator: Simulator) -> None:
    """Changed areas of a snapshot's disk; a failed query means the whole disk, never nothing."""
    session, vm = simulator.session, simulator.vm(5)
    made = plain_snapshot(session, vm)
    disk = made.disks[0]
    decision = DiskDecision(
        device_key=disk.device_key, areas=AreaSource.ALLOCATED, since="*", reason="the first backup"
    )
    found = changed_areas.areas_of_disk(session, made, disk, decision)
    assert found.length == disk.capacity_bytes or not simulator.outcomes.not_there(
        "QueryChangedDiskAreas"
    )


@case("GET /folder", "PUT /folder")
def small_files(simulator: Simulator) -> None:
    """A VM's small files over HTTPS, pinned, with the login's cookie."""
    session, vm = simulator.session, simulator.vm(6)
    place = place_of_vm(session, vm)
    datastore_files.upload(session, place, "referee file.bin", b"refereed")
    assert datastore_files.download(session, place, "referee file.bin") == b"refereed"
    machine = reference(vim.VirtualMachine, vm.moref)
    layout = properties.read_one(session, machine, ["layoutEx.file"])["layoutEx.file"]
    for named in (str(each.name) for each in layout if each.type == "config"):
        if not datastore_folders.exists(session, place, named.partition("] ")[2]):
            raise SimulatorsFault("a VM names a .vmx that is not there")
    files = datastore_files.read_vm_files(session, vm)
    assert any(each.kind == "vmx" for each in files)


@case("MakeDirectory", "SearchDatastore_Task", "DeleteDatastoreFile_Task")
def folders(simulator: Simulator) -> None:
    """A folder of ours is made, looked into and deleted; a second one of its name is refused."""
    session = simulator.session
    place = place_of_vm(session, simulator.vm(6))
    assert datastore_folders.list_folder(session, place, "referee") is None
    datastore_folders.make_folder(session, place, "referee")
    datastore_files.upload(session, place, "referee/file", b"refereed")
    found = datastore_folders.list_folder(session, place, "referee")
    assert found is not None and [each.name for each in found] == ["file"], f"{found}"
    assert found[0].length == len(b"refereed")
    with expected(VsphereFailed) as refusal:
        datastore_folders.make_folder(session, place, "referee")
    assert datastore_folders.already_exists(refusal[0])
    datastore_folders.delete_path(session, place, "referee")
    assert not datastore_folders.exists(session, place, "referee")


@case("ExportSnapshot", "HttpNfcLeaseProgress", "HttpNfcLeaseComplete", "HttpNfcLeaseAbort")
def snapshot_lease(simulator: Simulator) -> None:
    """A snapshot's disks are lent, the lease is renewed and ended; one that ended is harmless."""
    session = simulator.session
    made = plain_snapshot(session, simulator.vm(7))
    target = reference(vim.vm.Snapshot, made.moref)
    _lease_and_back(simulator, lambda: session.call(target, "ExportSnapshot"))
    ledger = job_ledger(simulator.folder)
    try:
        with transfer_leases.snapshot_export(session, ledger, snapshot=made) as tickets:
            assert set(tickets) == {disk.device_key for disk in made.disks}
    except VsphereFailed as error:
        if "no address" not in error.message:
            raise
        raise SimulatorsFault("a lease does not name a disk's controller and unit") from error
    finally:
        assert not ledger.open_entries(), "the ledger is not clean"


@case("ExportVm", "HttpNfcLeaseProgress", "HttpNfcLeaseComplete")
def vm_lease(simulator: Simulator) -> None:
    """The disks of a VM that is powered off are lent."""
    session = simulator.session
    machine = reference(vim.VirtualMachine, simulator.vm(8).moref)
    session.wait_for_task(session.call(machine, "PowerOffVM_Task"), what="powering off")
    _lease_and_back(simulator, lambda: session.call(machine, "ExportVm"))


def _lease_and_back(simulator: Simulator, start: Callable[[], Reference]) -> None:
    session, passed = simulator.session, simulator.outcomes.passed
    lease = transfer_leases.lend(session, start, repeatable=True)
    info = transfer_leases.wait_until_ready(session, lease)
    assert info.deviceUrl and transfer_leases.state_of(session, lease) == "ready"
    info.leaseTimeout = 4  # renewed every second then
    renewals = passed.get("HttpNfcLeaseProgress", 0)
    with transfer_leases.renewed(session, lease, info):
        for _ in range(100):
            if passed.get("HttpNfcLeaseProgress", 0) > renewals:
                break
            session.stop.wait(0.05)
    transfer_leases.end_lease(session, lease, "HttpNfcLeaseComplete")
    transfer_leases.end_lease(session, lease, "HttpNfcLeaseAbort")
    other = transfer_leases.lend(session, start, repeatable=True)
    transfer_leases.end_lease(session, other, "HttpNfcLeaseAbort")
