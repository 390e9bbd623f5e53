"""`holdfast status`, for people and for monitoring, against a controller that answers what a test says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest

from holdfast_common.clock import SystemClock, utc_text
from holdfast_common.places import HOME_VARIABLE
from holdfast_common.wire import operator_pb2
from holdfast_controller import main
from holdfast_controller.ledger import EntryId, EntryKind, EntryState, LedgerEntry
from holdfast_controller.service.operator_messages import debt_message
from support.session_rig import AnsweringOperators, controller_rig

NOW = utc_text(SystemClock().now())
OLD = utc_text(SystemClock().now() - timedelta(days=3))
GOOD = operator_pb2.VmStatus(name="web", vcenter="lab", last_good_at=NOW, last_result="done")
HERE = operator_pb2.Agent(host_name="proxy", state="connected")


@contextmanager
def controller(
    home: Path, monkeypatch: pytest.MonkeyPatch, status: operator_pb2.Status
) -> Iterator[None]:
    operators = AnsweringOperators({"GetStatus": status})
    monkeypatch.setenv(HOME_VARIABLE, str(home))
    with controller_rig(home, operators=operators):
        yield


@pytest.mark.parametrize(
    ("status", "code", "said"),
    [
        (operator_pb2.Status(vms=[GOOD], agents=[HERE]), 0, "HOLDFAST OK: 1 VMs"),
        (operator_pb2.Status(vms=[GOOD]), 2, "CRITICAL: 1 VMs, 0 without a good backup"),
        (
            operator_pb2.Status(
                vms=[GOOD], agents=[HERE, operator_pb2.Agent(state="away"), operator_pb2.Agent()]
            ),
            1,
            "1 of 3 agents connected",
        ),
        (
            operator_pb2.Status(vms=[GOOD], agents=[operator_pb2.Agent(state="away")]),
            2,
            "no agent is connected",
        ),
        (
            operator_pb2.Status(vms=[GOOD], agents=[HERE, operator_pb2.Agent(state="revoked")]),
            0,
            "1 of 1 agents connected",
        ),
        (
            operator_pb2.Status(vms=[GOOD], agents=[HERE], warnings=["vCenter lab: a | b\nc"]),
            1,
            "vCenter lab: a / b c",
        ),
        (
            operator_pb2.Status(vms=[GOOD], agents=[HERE], repository_problem="gone"),
            2,
            "; gone",
        ),
        (
            operator_pb2.Status(
                vms=[operator_pb2.VmStatus(name="db", last_good_at=NOW, last_result="failed")],
                agents=[HERE],
            ),
            1,
            "1 failed last",
        ),
        (operator_pb2.Status(vms=[GOOD], agents=[HERE], late=1), 1, "1 later than promised"),
        (
            operator_pb2.Status(
                vms=[operator_pb2.VmStatus(name="db", last_good_at=OLD, last_result="done")],
                agents=[HERE],
            ),
            1,
            "1 older than 26 h without a promise",
        ),
        (
            operator_pb2.Status(
                vms=[
                    operator_pb2.VmStatus(
                        name="db", last_good_at=OLD, last_result="done", promised_seconds=604800
                    )
                ],
                agents=[HERE],
            ),
            0,
            "0 later than promised, 0 older",
        ),
        (operator_pb2.Status(agents=[HERE]), 3, "UNKNOWN: the inventory is empty"),
    ],
)
def test_monitoring_gets_one_line_and_a_code(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    status: operator_pb2.Status,
    code: int,
    said: str,
) -> None:
    with controller(tmp_path, monkeypatch, status):
        assert main.run(["status", "--nagios"]) == code
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("HOLDFAST ")
    assert said in line
    assert "|" not in line


def test_monitoring_gets_its_line_when_no_controller_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path))
    assert main.run(["status", "--nagios"]) == 2
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("HOLDFAST CRITICAL: no controller runs here")


def test_two_ways_to_print_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["status", "--nagios", "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["code"] == "usage"


ENTRY = LedgerEntry(
    entry_id=EntryId("1"),
    run_id="r",  # type: ignore[arg-type]  # any text
    job_id="j",  # type: ignore[arg-type]  # any text
    kind=EntryKind.SNAPSHOT,
    vcenter_id="v",
    facts={"vm": "vm-1", "vm_name": "web", "nonce": "n", "excess": "{}", "instance_uuid": "i"},
    state=EntryState.DEBT,
    created_at="2026-11-22T13:00:00.000000Z",
    updated_at="",
    attempts=3,
    last_error="vsphere_failed: removing a snapshot failed " + "(x=1, " * 200,
)


@pytest.mark.parametrize("kind", list(EntryKind))
def test_every_kind_of_debt_is_one_sentence(kind: EntryKind) -> None:
    facts = {
        **ENTRY.facts,
        "proxy_name": "proxy",
        "datastore_name": "nfs1",
        "datastore_id": "ds:///a/",
        "path": "web/web.vmdk",
        "disks": '[{"much": "json"}]',
    }
    entry = LedgerEntry(
        **{
            **{name: getattr(ENTRY, name) for name in LedgerEntry.__slots__},
            "kind": kind,
            "facts": facts,
        }
    )
    told = debt_message(entry, vcenter="lab").target
    assert "web" in told
    assert len(told) < 100
    assert not set(told) & set("{}=")


def test_people_see_a_debt_as_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    status = operator_pb2.Status(debts=[debt_message(ENTRY, vcenter="lab")])
    with controller(tmp_path, monkeypatch, status):
        assert main.run(["status"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("DEBT")]
    assert line.startswith(
        "DEBT     our snapshot of VM web (lab), since 2026-11-22T13:00:00: vsphere_failed: removing"
    )
    assert len(line) < 260


def test_names_do_nothing_to_a_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "web\x1b[2J\rgood"
    status = operator_pb2.Status(
        vms=[operator_pb2.VmStatus(name=name)],
        warnings=[f"{name} is odd"],
        running=[operator_pb2.Job(vm=name)],
        debts=[debt_message(ENTRY, vcenter=name)],
    )
    with controller(tmp_path, monkeypatch, status):
        assert main.run(["status"]) == 0
    told = capsys.readouterr().out
    assert "web?[2J?good" in told
    assert not any(c for c in told if not c.isprintable() and c != "\n")


def test_broken_promises_stand_first_and_vms_in_no_policy_are_counted_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    late = operator_pb2.VmStatus(
        name="db",
        last_good_at=utc_text(SystemClock().now() - timedelta(hours=72)),
        policies=["gold", "silver"],
        promised_seconds=26 * 3600,
        late_seconds=46 * 3600,
        broken_by="gold",
        last_result="partial",
    )
    never = operator_pb2.VmStatus(
        name="new", policies=["gold"], promised_seconds=93600, late_seconds=90, broken_by="gold"
    )
    bare = [operator_pb2.VmStatus(name=f"bare{number:02}") for number in range(25)]
    status = operator_pb2.Status(vms=[late, never, *bare], late=25, uncovered=10_025, policies=2)
    with controller(tmp_path, monkeypatch, status):
        assert main.run(["status"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert (
        "LATE     db: last good 72.0 h, 46.0 h later than gold promises;"
        " its last backup is partial: see `holdfast why db`"
    ) in lines
    assert (
        "LATE     new: last good never, 90 s later than gold promises; it was never backed up"
    ) in lines
    assert "LATE     and 23 more" in lines
    (told,) = [line for line in lines if line.startswith("in no policy")]
    assert told.startswith("in no policy: 10025 VMs: bare00, bare01, ")
    assert told.endswith("bare19 and 10005 more")
    (row,) = [line for line in lines if line.startswith("db ")]
    assert "72.0 h     ?           never      26.0 h    gold, silver" in row
    assert next(line for line in lines if line.startswith("bare00 ")).split()[-1] == "NONE"
