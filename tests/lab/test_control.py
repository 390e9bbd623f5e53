"""The control socket: acting as the guest, judging restores, moments, counters."""

from __future__ import annotations

import base64
import json
import socket
from pathlib import Path

import pytest

from holdfast_lab.control_client import ControlFailed, LabClient, bound_path
from holdfast_lab.inventory_plan import InventoryPlan
from holdfast_lab.server import RunningLab, running_lab


def test_what_the_guest_wrote_is_on_the_disk_and_in_the_truth(
    lab: RunningLab, tmp_path: Path
) -> None:
    data = bytes(range(256)) * 2
    lab.control.call("guest-write", vm="web", offset=1 << 20, data=base64.b64encode(data).decode())
    lab.control.call("truth", vm="web", to=str(tmp_path / "truth.raw"))
    truth = (tmp_path / "truth.raw").read_bytes()
    assert len(truth) == 4 << 20
    assert truth[1 << 20 : (1 << 20) + 512] == data
    verdict = lab.control.call("compare", vm="web")
    assert verdict["equal"]
    assert verdict["disks"][0]["offset"] is None


def test_the_truth_of_a_snapshot_stays_known_after_it_is_gone(lab: RunningLab) -> None:
    lab.control.call("user-snapshot", vm="web", name="gone soon")
    lab.control.call("guest-write", vm="web", seed=5, count=3)
    lab.control.call("user-snapshot", vm="web", name="gone soon", action="remove")
    now = lab.control.call("compare", vm="web")
    then = lab.control.call("compare", vm="web", at="gone soon")
    assert now["equal"]
    assert not then["equal"]
    assert then["disks"][0]["offset"] is not None


def test_the_truth_of_a_deleted_vm_judges_its_restored_copy(
    lab: RunningLab, tmp_path: Path
) -> None:
    plan = {
        "name": "lost",
        "datastore": "nfs2",
        "disks": [{"size": "1M", "content": "random", "seed": 9}],
    }
    lab.control.call("vm-add", machine=plan)
    lab.control.call("mark", vm="lost", name="last backup")
    raw = tmp_path / "backup.raw"
    lab.control.call("truth", vm="lost", at="last backup", to=str(raw))
    lab.control.call("guest-write", vm="lost", seed=1)
    lab.control.call("vm-remove", vm="lost")
    assert lab.control.call("compare", vm="lost", at="last backup", file=str(raw))["equal"]
    damaged = bytearray(raw.read_bytes())
    damaged[700_001] ^= 1
    raw.write_bytes(damaged)
    verdict = lab.control.call("compare", vm="lost", at="last backup", file=str(raw))
    assert [each["offset"] for each in verdict["disks"]] == [700_001]


def test_the_truth_of_a_restored_disk_survives_its_deletion(
    lab: RunningLab, tmp_path: Path
) -> None:
    plan = {"name": "back", "datastore": "nfs2", "power": "off", "disks": [{"size": "1M"}]}
    shown = lab.control.call("vm-add", machine=plan)
    flat = Path(shown["disks"][0]["path"]).with_name("back-flat.vmdk")
    content = b"restored" * (1 << 17)
    flat.write_bytes(content)
    with lab.lab.lock:
        lab.lab.machine("back").disks()[0].disk.content_replaced()
    lab.control.call("mark", vm="back", name="restored")
    lab.control.call("vm-remove", vm="back")
    raw = tmp_path / "restored.raw"
    raw.write_bytes(content)
    assert lab.control.call("compare", vm="back", at="restored", file=str(raw))["equal"]


def test_moments_are_listed_with_every_disk(lab: RunningLab) -> None:
    moments = lab.control.call("moments", vm="db")
    assert moments[0]["name"] == "before upgrade"
    assert [each["key"] for each in moments[0]["disks"]] == [2000, 2001]


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        ("sing", {}, "unknown command"),
        ("vm-show", {}, "vm is required"),
        ("vm-show", {"vm": "nobody"}, "0 objects of class Machine"),
        ("vm-show", {"vm": 3}, "vm has the wrong type"),
        ("guest-write", {"vm": "web", "disk": 7}, "web has 1 disks"),
        ("guest-write", {"vm": "web", "offset": 7, "data": "AAAA"}, "not whole sectors"),
        ("compare", {"vm": "web", "at": "never"}, "no moment of web"),
        ("compare", {"vm": "web", "original": "db"}, "web has 1 disks, db had 2"),
        ("vm-add", {"machine": {"name": "x", "flies": True, "datastore": "nfs1"}}, "flies"),
        ("vm-power", {"vm": "web", "to": "on"}, "InvalidPowerState"),
        ("datastore-add", {"name": "x", "kind": "VSAN"}, "unknown kind"),
    ],
)
def test_a_command_that_cannot_be_done_says_why(
    lab: RunningLab, command: str, arguments: dict[str, object], message: str
) -> None:
    with pytest.raises(ControlFailed, match=message):
        lab.control.call(command, **arguments)


def test_a_line_that_is_no_command_is_answered_with_an_error(lab: RunningLab) -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        name, folder = bound_path(lab.control.path)
        connection.connect(name)
        del folder
        stream = connection.makefile("rwb")
        for line in (b"nonsense\n", b"[1]\n"):
            stream.write(line)
            stream.flush()
            assert json.loads(stream.readline())["ok"] is False


def test_a_socket_deep_in_the_file_system_is_reached(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100) / ("e" * 100)
    with running_lab(deep, inventory=InventoryPlan.empty()) as lab:
        assert LabClient(deep).call("describe")["url"] == lab.url
    with pytest.raises(ControlFailed, match="no lab runs"):
        LabClient(deep).call("describe")


def test_another_certificate_is_served_from_the_next_connection_on(lab: RunningLab) -> None:
    before = lab.control.call("describe")["certificate_sha256"]
    after = lab.control.call("certificate-change")
    assert before != after == lab.control.call("describe")["certificate_sha256"]


def test_datastores_are_made_changed_and_listed(lab: RunningLab) -> None:
    made = lab.control.call("datastore-add", name="extra", kind="NFS", capacity="1G")
    assert (made["capacity_bytes"], made["kind"]) == (1 << 30, "NFS")
    changed = lab.control.call("datastore-set", name="extra", capacity="2G", accessible=False)
    assert (changed["capacity_bytes"], changed["accessible"]) == (2 << 30, False)
    assert "extra" in {each["name"] for each in lab.control.call("datastore-list")}


def test_streams_are_counted_by_host_and_datastore(lab: RunningLab) -> None:
    facts = {"transport": "nfc", "host": "esx9", "vm": "web", "file": "x"}
    with (
        lab.lab.calls.stream(**facts, datastore="d1", direction="read") as one,
        lab.lab.calls.stream(**facts, datastore="d2", direction="write") as two,
    ):
        one.bytes_moved += 5
        two.bytes_moved += 7
        assert lab.control.call("counters")["hosts"]["esx9"]["open_now"] == 2
    counted = lab.control.call("counters")
    assert counted["hosts"]["esx9"] == {
        "open_now": 0,
        "open_at_most": 2,
        "opened": 2,
        "bytes_read": 5,
        "bytes_written": 7,
    }
    assert counted["datastores"]["d1"]["bytes_read"] == 5
    closed = lab.control.call("calls", event="stream_close")[-2:]
    assert {each["bytes"] for each in closed} == {5, 7}


def test_the_description_is_complete_and_private(lab: RunningLab) -> None:
    path = lab.state / "lab.json"
    described = json.loads(path.read_text(encoding="utf-8"))
    assert described["url"] == lab.url
    assert Path(described["datastores"]["nfs1"]["path"]).is_dir()
    assert path.stat().st_mode & 0o077 == 0
    assert (lab.state / "certificate.key").stat().st_mode & 0o077 == 0


def test_passwords_are_not_in_the_log(lab: RunningLab) -> None:
    assert lab.password not in (lab.state / "calls.jsonl").read_text(encoding="utf-8")
