"""What goes wrong around a backup: each a clear error with its exit code, and nothing left behind."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.installation import Installation, whole_installation
from support.waiting import wait_until


@pytest.fixture(scope="module")
def holdfast(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    with whole_installation(tmp_path_factory.mktemp("errors")) as installation:
        yield installation


@pytest.fixture(autouse=True)
def nothing_is_left(holdfast: Installation) -> Iterator[None]:
    yield
    holdfast.lab("misbehave", "disarm")
    wait_until(
        lambda: not holdfast.own_snapshots("web") and not holdfast.attached_to_proxy(),
        what="our snapshots and disks are given back",
    )
    assert "before upgrade" in [each["name"] for each in holdfast.lab("snapshots", "db")]


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
    holdfast.lab("misbehave", "arm", "expire_session", "--match", "method=RemoveSnapshot_Task")
    holdfast.holdfast("backup", "web", "--level", "full")


def test_a_cancelled_job_gives_its_snapshot_back_and_makes_no_point(holdfast: Installation) -> None:
    before = len(holdfast.points("web"))
    holdfast.lab(
        "misbehave", "arm", "hold_task", "--match", "description=VirtualMachine.createSnapshot"
    )
    command = holdfast.in_background("backup", "web", "--json")
    wait_until(lambda: _running(holdfast, "web") != "", what="the job runs")
    holdfast.holdfast("job", "cancel", _running(holdfast, "web"))
    holdfast.lab("misbehave", "release")
    done = command.wait()
    assert done.status == 130, done.text
    assert "cancelled by an operator" in done.text
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
