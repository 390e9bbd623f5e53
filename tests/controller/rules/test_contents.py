"""Rules 20 to 27: transports, consistency, and what belongs in a backup. See docs/rules.md."""

from __future__ import annotations

from dataclasses import replace

import pytest
from pyVmomi import vim

from holdfast_common.errors import NotFound, NothingProtected, RepositoryFull
from holdfast_common.identity import DatastoreId
from holdfast_common.job_spec import AreaSource, BackUpDisks, JobSpec
from holdfast_common.repository.writer import PointWriter
from holdfast_controller.decide.level import PreviousDisk, PreviousPoint, decide_level
from holdfast_controller.facts import ChainLink, DiskFacts, VmFacts
from holdfast_controller.runs.agent_link import ConnectedAgent
from holdfast_controller.runs.requests import BackupRequest
from holdfast_controller.vsphere import quiesce
from holdfast_lab.server import RunningLab
from support.one_process import OneProcess, disk_content, disk_truth, guest_writes
from support.vms import vm_named
from support.vsphere_sessions import CountingGate

UNIT = 64 * 1024


@pytest.mark.parametrize("transport", ["direct", "hotadd", "nfc"])
def test_rule_21_the_transport_that_was_used_is_recorded_with_its_reason(
    holdfast: OneProcess, transport: str
) -> None:
    job = holdfast.back_up("web", transport=transport)
    record = holdfast.record(job)
    assert (job.transport, record.transport) == (transport, transport)
    assert [disk.transport for disk in job.disks] == [transport]
    assert any(
        f"{transport} was asked for" in event.detail
        for event in holdfast.world.jobs.events(job.job_id)
    )


def test_rule_22_a_login_that_ends_in_the_middle_of_a_copy_is_renewed(
    holdfast: OneProcess, lab: RunningLab, gate: CountingGate
) -> None:
    def end_all(spec: JobSpec) -> None:
        with lab.lab.lock:
            lab.lab.sessions.end_all()

    holdfast.agent.before = end_all
    before = gate.count("Login")
    job = holdfast.back_up("web")
    assert str(job.state) == "done"
    assert gate.count("Login") == before + 2, "the first use, and once more"
    assert not holdfast.world.ledger.open_entries()


def test_rule_23_the_point_keeps_the_level_that_was_reached(
    holdfast: OneProcess, lab: RunningLab
) -> None:
    with lab.lab.lock:
        lab.lab.machine("web").tools.quiesce_fault = "filesystem"
    job = holdfast.back_up("web", consistency="filesystem")
    record = holdfast.record(job)
    assert (record.consistency_asked, record.consistency_reached) == ("filesystem", "crash")
    assert "quiesce failed" in record.evidence
    assert [warned.code for warned in job.warnings] == ["consistency"]
    assert str(job.state) == "partial"


def windows(vm: VmFacts) -> VmFacts:
    """The VM as a Windows guest whose applications can be quiesced."""
    return replace(
        vm, guest_id="windows2019srv_64Guest", tools_running="guestToolsRunning", encrypted=False
    )


def test_rule_23_applications_are_quiesced_only_where_they_can_be(holdfast: OneProcess) -> None:
    vm = windows(vm_named(holdfast.session, "web"))
    (disk,) = vm.disks
    assert quiesce.plan_quiesce(vm, "application").level == "application"
    many = tuple(replace(disk, device_key=2000 + number) for number in range(8))
    for changed, reason in (
        (replace(vm, disks=(replace(disk, adapter="nvme"),)), "SCSI"),
        (replace(vm, disks=(replace(disk, adapter="ide"),)), "SCSI"),
        (replace(vm, disks=many), "free slots"),
        (replace(vm, encrypted=True), "encrypted"),
        (replace(vm, guest_id="debian12_64Guest"), "Windows"),
    ):
        plan = quiesce.plan_quiesce(changed, "application")
        assert plan.level == "filesystem"
        assert reason in plan.reason


def test_rule_24_a_quiesce_of_windows_asks_for_a_copy(holdfast: OneProcess) -> None:
    vm = windows(vm_named(holdfast.session, "web"))
    for level in ("filesystem", "application"):
        spec = quiesce.quiesce_spec(vm, level)
        assert isinstance(spec, vim.vm.WindowsQuiesceSpec)
        assert spec.vssBackupType == 5, "VSS_BT_COPY: it cuts no logs"
        assert spec.vssPartialFileSupport is False


def test_rule_24_without_tools_nothing_is_quiesced_and_the_point_says_so(
    holdfast: OneProcess, lab: RunningLab, gate: CountingGate
) -> None:
    with lab.lab.lock:
        lab.lab.machine("web").tools.running = False
    record = holdfast.record(holdfast.back_up("web", consistency="filesystem"))
    assert record.consistency_reached == "crash"
    assert "Tools are not running" in record.evidence
    assert gate.count("CreateSnapshotEx_Task") == 0


def test_rule_25_what_is_not_in_the_backup_is_named_in_result_and_status(
    holdfast: OneProcess, lab: RunningLab
) -> None:
    with lab.lab.lock:
        lab.lab.machine("db").disks()[0].mode = "independent_persistent"
    holdfast.refresh()
    job = holdfast.back_up("db")
    assert [disk.device_key for disk in holdfast.record(job).disks] == [2001]
    assert str(job.state) == "partial"
    told = " ".join(warned.message for warned in job.warnings)
    assert "Hard disk 1 is not in the backup: its mode is independent_persistent" in told
    assert "spans saved and unsaved disks cannot be restored" in told
    assert any("Hard disk 1" in line.detail for line in holdfast.doctor() if line.name == "VM db")


def test_rule_25_a_backup_of_nothing_is_a_failure(holdfast: OneProcess, lab: RunningLab) -> None:
    job = holdfast.back_up("proxy")
    assert str(job.state) == "failed"
    assert job.error is not None
    assert job.error.code == "nothing_protected"
    with pytest.raises((NothingProtected, NotFound)):
        holdfast.engine.start_backup(
            BackupRequest(selectors=("web",), vcenter="elsewhere"), dry_run=False
        )


def test_rule_26_configuration_firmware_and_nvram_are_in_the_point_and_nothing_in_the_clear(
    holdfast: OneProcess, lab: RunningLab
) -> None:
    marker = b"in the clear on the datastore   " * 16
    lab.lab.machine("web").disks()[0].disk.guest_write(2 * UNIT, marker)
    record = holdfast.record(holdfast.back_up("web"))
    assert set(record.blob_kinds) == {"vmx", "nvram", "ovf"}
    assert '"firmware": "bios"' in record.configuration
    files = [path for path in (holdfast.folder / "repository").rglob("*") if path.is_file()]
    assert files
    for path in files:
        content = path.read_bytes()
        for plain in (marker[:32], b"displayName", b"vmPathName"):
            assert plain not in content, f"{plain!r} is readable in {path.name}"


def link(store: str, path: str) -> ChainLink:
    return ChainLink(
        datastore_id=DatastoreId(store), datastore_moref=store, datastore_name="same", path=path
    )


def test_rule_27_disks_are_told_apart_by_key_and_uuid_and_never_by_their_files_names(
    holdfast: OneProcess,
) -> None:
    """Two disks whose files are named alike, on two datastores that are named alike."""
    (shape,) = vm_named(holdfast.session, "web").disks

    def disk(key: int, uuid: str, store: str) -> DiskFacts:
        return replace(
            shape,
            device_key=key,
            backing_uuid=uuid,
            chain=(link(store, "web/web.vmdk"),),
            change_id=f"52 {store}/9",
        )

    def previous(key: int, uuid: str, store: str) -> PreviousDisk:
        return PreviousDisk(
            device_key=key,
            backing_uuid=uuid,
            capacity_bytes=shape.capacity_bytes,
            chain=(link(store, "web/web.vmdk").location,),
            change_id=f"52 {store}/4",
        )

    decided = decide_level(
        disks=[disk(2000, "A", "ds1"), disk(2001, "B", "ds2"), disk(2002, "D", "ds3")],
        snapshot_tree="at root",
        host=None,
        vmfs_datastores=(),
        previous=PreviousPoint(
            disks=(
                previous(2001, "B", "ds2"),
                previous(2000, "A", "ds1"),
                previous(2002, "C", "ds3"),  # another disk was there, in a file of that name
            ),
            snapshot_tree="at root",
            host_build="",
        ),
        level_asked="incremental",
    )
    found = {each.device_key: (each.areas, each.since) for each in decided.disks}
    assert found == {
        2000: (AreaSource.CHANGED, "52 ds1/4"),
        2001: (AreaSource.CHANGED, "52 ds2/4"),
        2002: (AreaSource.EVERYTHING, ""),
    }


def test_rule_27_every_disk_of_a_vm_comes_back_as_itself(
    holdfast: OneProcess, lab: RunningLab
) -> None:
    for number in (0, 1):
        guest_writes(lab, "db", 9 * UNIT, number=number)
    job = holdfast.back_up("db")
    work = next(spec.work for spec in holdfast.agent.specs if isinstance(spec.work, BackUpDisks))
    assert len({disk.backing_uuid for disk in work.disks}) == 2
    for number, key in enumerate((2000, 2001)):
        assert disk_content(holdfast, job, key) == disk_truth(lab, "db", number)


def test_rule_34_a_job_is_done_only_when_its_point_is_in_the_repository(
    holdfast: OneProcess, lab: RunningLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise RepositoryFull("there is no room for the manifest")

    with monkeypatch.context() as patched:
        patched.setattr(PointWriter, "publish", full)
        job = holdfast.back_up("web")
    assert str(job.state) == "failed"
    assert job.error is not None
    assert job.error.code == "repository_full"
    assert not job.point_id
    assert not holdfast.world.catalogue.points()
    assert disk_content(holdfast, holdfast.back_up("web")) == disk_truth(lab, "web")


def test_rule_35_what_lowers_a_backup_is_counted_with_its_job_and_on_its_point(
    holdfast: OneProcess, lab: RunningLab
) -> None:
    lab.lab.misbehaviour.arm(
        "fail_task",
        match={"description": "*Snapshot.remove"},
        parameters={"fault": "FileLocked"},
        times=None,
    )
    with lab.lab.lock:
        lab.lab.machine("web").tools.running = False
    job = holdfast.back_up("web", consistency="filesystem")
    assert [warned.code for warned in job.warnings] == ["consistency", "left_behind"]
    assert str(job.state) == "partial"


def test_rule_21_a_proxy_that_was_switched_off_is_known_before_a_snapshot_is_taken(
    holdfast: OneProcess, lab: RunningLab, gate: CountingGate
) -> None:
    with lab.lab.lock:
        lab.lab.machine("proxy").power_state = "poweredOff"  # after the inventory was read
    job = holdfast.back_up("app")
    assert holdfast.record(job).transport == "nfc"
    placed = [e.detail for e in holdfast.world.jobs.events(job.job_id) if e.event == "placed"]
    assert "the proxy is poweredOff" in placed[0]
    before = gate.count("CreateSnapshot_Task")
    asked = holdfast.back_up("app", transport="hotadd")
    assert asked.error is not None
    assert asked.error.code == "no_proxy"
    assert gate.count("CreateSnapshot_Task") == before, "no snapshot for what is refused"


def test_an_agent_that_dies_before_its_disks_are_attached_is_told_and_tried_again(
    holdfast: OneProcess, monkeypatch: pytest.MonkeyPatch, gate: CountingGate
) -> None:
    def connected() -> list[ConnectedAgent]:
        return [] if gate.count("CreateSnapshot_Task") else [holdfast.agent.agent]

    monkeypatch.setattr(holdfast.agent, "connected", connected)
    job = holdfast.back_up("app", transport="hotadd")
    assert job.error is not None
    assert (job.error.code, job.error.retryable) == ("timed_out", True)
    assert "the agent went away" in job.error.message
    assert ("agent", "proxy") in job.error.facts
    assert gate.count("ReconfigVM_Task") == 0, "nothing was attached"
    assert not holdfast.world.ledger.open_entries()
