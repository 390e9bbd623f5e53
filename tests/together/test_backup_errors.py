"""What goes wrong around a backup: each a clear error with its exit code, and nothing left behind."""

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.installation import HASTY, Installation, whole_installation
from support.waiting import wait_until


@pytest.fixture(scope="module")
def holdfast(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    folder = tmp_path_factory.mktemp("errors")
    with whole_installation(folder, program_prefix=HASTY) as installation:
        installation.configure(attempts_max=1)  # an error is to be seen, not passed by
        installation.kill("controller", signal.SIGTERM)
        installation.start_controller()
        wait_until(installation.agent_is_connected, seconds=60, what="the agent is back")
        yield installation


@pytest.fixture(autouse=True)
def nothing_is_left(holdfast: Installation) -> Iterator[None]:
    yield
    holdfast.control("misbehaviour-disarm")
    wait_until(
        lambda: not holdfast.own_snapshots("web") and not holdfast.attached_to_proxy(),
        what="our snapshots and disks are given back",
    )
    assert "before upgrade" in [each["name"] for each in holdfast.lab("snapshots", "db")]


def small_vm(name: str) -> dict[str, object]:
    disk = {"size_bytes": 4 << 20, "content": "random", "seed": 5}
    return {"name": name, "datastore": "nfs1", "disks": [disk]}


def test_a_vm_that_nobody_knows_is_told(holdfast: Installation) -> None:
    done = holdfast.holdfast("backup", "nosuch", expect=1)
    assert "not_found: no VM is named so" in done.stderr


def test_a_wrong_password_is_told_and_nothing_is_remembered(holdfast: Installation) -> None:
    facts = holdfast.lab_facts()
    wrong = holdfast.folder / "wrong"
    wrong.write_text("wrong\n")
    done = holdfast.holdfast(
        "vcenter",
        "add",
        facts["url"],
        "--name",
        "other",
        "--user",
        facts["user"],
        "--password-file",
        str(wrong),
        "--certificate-sha256",
        facts["certificate_sha256"],
        expect=15,
    )
    assert "authentication_failed" in done.stderr
    names = [
        row["name"] for row in holdfast.holdfast("vcenter", "list", "--json").json()["vcenters"]
    ]
    assert names == ["lab"]


def test_another_certificate_than_the_expected_one_is_refused(holdfast: Installation) -> None:
    facts = holdfast.lab_facts()
    done = holdfast.holdfast(
        "vcenter",
        "add",
        facts["url"],
        "--name",
        "other",
        "--user",
        facts["user"],
        "--password-file",
        str(holdfast.folder / "password"),
        "--certificate-sha256",
        "00" * 32,
        expect=15,
    )
    assert "another certificate" in done.stderr


def test_a_repository_whose_mount_is_missing_is_exit_10_and_is_not_made_anew(
    holdfast: Installation,
) -> None:
    away = holdfast.folder / "unmounted"
    holdfast.repository.rename(away)
    try:
        done = holdfast.holdfast("backup", "web", expect=10)
        assert "no_repository" in done.stderr
        assert not holdfast.repository.exists()
        assert "no_repository" in holdfast.holdfast("doctor", expect=1).text
    finally:
        away.rename(holdfast.repository)


def test_a_login_that_expires_in_the_middle_is_renewed(holdfast: Installation) -> None:
    holdfast.misbehave("expire_session", {"method": "RemoveSnapshot_Task"})
    holdfast.holdfast("backup", "web", "--level", "full")


def test_a_cancelled_job_gives_its_snapshot_back_and_makes_no_point(holdfast: Installation) -> None:
    before = len(holdfast.points("web"))
    holdfast.misbehave("hold_task", {"description": "VirtualMachine.createSnapshot"})
    command = holdfast.in_background("backup", "web", "--json")
    wait_until(lambda: _running(holdfast, "web") != "", what="the job runs")
    holdfast.holdfast("job", "cancel", _running(holdfast, "web"))
    holdfast.control("misbehaviour-release")
    done = command.wait()
    assert done.status == 130, done.text
    assert '"state": "cancelled"' in done.text
    assert len(holdfast.points("web")) == before


def _running(holdfast: Installation, vm: str) -> str:
    jobs = holdfast.holdfast("job", "list", "--vm", vm, "--json").json()["jobs"]
    running = [job["job_id"] for job in jobs if job["state"] in ("snapshotting", "transferring")]
    return str(running[0]) if running else ""


def test_a_refused_place_for_a_restored_disk_names_the_allowed_ones(
    holdfast: Installation, tmp_path: Path
) -> None:
    holdfast.holdfast("backup", "web", "--level", "full")
    point = holdfast.newest_point("web")
    done = holdfast.holdfast(
        "restore", point, "disk", "0", "--to", str(tmp_path / "x.vmdk"), expect=15
    )
    assert str(holdfast.restores) in done.stderr
    done = holdfast.holdfast("restore", point, "disk", "7", "--to", "/x.vmdk", expect=1)
    assert "no such disk" in done.stderr


def test_a_vm_that_is_deleted_in_the_middle_is_told_and_makes_no_point(
    holdfast: Installation,
) -> None:
    holdfast.control("vm-add", machine=small_vm("short-lived"))
    holdfast.holdfast("vcenter", "refresh", "lab")
    holdfast.holdfast("backup", "short-lived")
    holdfast.misbehave("hold_call", {"method": "QueryChangedDiskAreas"})
    command = holdfast.in_background("backup", "short-lived", "--json")
    wait_until(lambda: bool(holdfast.own_snapshots("short-lived")), what="the snapshot is made")
    holdfast.control("vm-power", vm="short-lived", to="off")
    holdfast.control("vm-remove", vm="short-lived")
    holdfast.control("misbehaviour-release")
    done = command.wait()
    assert done.status == 1, done.text
    assert "source_gone" in done.text
    assert len(holdfast.points("short-lived")) == 1
    assert not holdfast.holdfast("status", "--json").json()["debts"]


def test_a_disk_that_moves_in_the_middle_fails_the_attempt(holdfast: Installation) -> None:
    holdfast.control("vm-add", machine=small_vm("mover"))
    holdfast.holdfast("vcenter", "refresh", "lab")
    holdfast.holdfast("backup", "mover")
    holdfast.misbehave(
        "move_disk", {"method": "QueryChangedDiskAreas"}, vm="mover", datastore="nfs2"
    )
    done = holdfast.holdfast("backup", "mover", "--json", expect=1)
    assert "disk_moved" in done.text or "source_" in done.text, done.text
    assert len(holdfast.points("mover")) == 1
    holdfast.holdfast("backup", "mover")


def test_a_repository_that_is_full_is_called_so(holdfast: Installation) -> None:
    if os.geteuid() != 0:
        pytest.skip("a small file system is mounted for it: run it as root")
    holdfast.holdfast("backup", "db")  # what becomes of the copy is lost: nothing new may be in it
    away, small = holdfast.folder / "away", holdfast.repository
    small.rename(away)
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=160m", "none", str(small)], check=True)
    try:
        shutil.copytree(away, small, dirs_exist_ok=True)
        free = shutil.disk_usage(small).free
        (small / "tmp" / "ballast").write_bytes(bytes(max(0, free - 8 * 1024 * 1024)))
        before = len(holdfast.points("db"))
        done = holdfast.holdfast("backup", "db", "--level", "full", "--json", expect=1)
        assert "repository_full" in done.text, done.text
        assert len(holdfast.points("db")) == before
    finally:
        subprocess.run(["umount", "--lazy", str(small)], check=True)
        small.rmdir()
        away.rename(small)


def test_an_agent_that_stops_answering_loses_its_job(holdfast: Installation) -> None:
    holdfast.misbehave("hold_call", {"method": "QueryChangedDiskAreas"})
    command = holdfast.in_background("backup", "web", "--json")
    wait_until(lambda: bool(holdfast.own_snapshots("web")), what="the snapshot is made")
    agent = holdfast.processes["agent"]
    agent.send_signal(signal.SIGSTOP)
    try:
        holdfast.control("misbehaviour-release")
        done = command.wait(120)
    finally:
        agent.send_signal(signal.SIGCONT)
    assert done.status in (1, 124), done.text
    assert "lease_expired" in done.text or "timed_out" in done.text
    wait_until(holdfast.agent_is_connected, seconds=60, what="the agent is back")
    holdfast.holdfast("backup", "web")


def test_a_certificate_that_changed_is_refused_by_name(holdfast: Installation) -> None:
    """The last one: from here on the vCenter shows another certificate."""
    holdfast.control("certificate-change")
    holdfast.kill("controller", signal.SIGTERM)
    holdfast.start_controller()
    done = holdfast.holdfast("vcenter", "refresh", "lab", expect=15)
    assert "certificate_mismatch" in done.stderr
    told = holdfast.holdfast("vcenter", "test", "lab", expect=1).stdout
    shown = re.search(r"it shows ([0-9a-f]{64}), pinned is", told)
    assert shown is not None, told
    holdfast.add_vcenter(certificate_sha256=shown[1])
    wait_until(holdfast.agent_is_connected, seconds=60, what="the agent is back")
    holdfast.holdfast("backup", "web")
