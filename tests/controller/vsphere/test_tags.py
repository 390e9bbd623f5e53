"""Tags of VMs over REST: read whole or not at all, pinned, in sessions that are given back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from holdfast_common.errors import (
    AuthenticationFailed,
    CapabilityAbsent,
    CertificateMismatch,
    HoldfastError,
    Interrupted,
    VsphereFailed,
    VsphereUnavailable,
)
from holdfast_common.logs import Secret
from holdfast_controller.facts import TagReading
from holdfast_controller.vsphere import tags
from holdfast_controller.vsphere.rest import RestSession
from holdfast_controller.vsphere.session import VsphereSession
from holdfast_controller.vsphere.tags import read_vm_tags
from holdfast_lab import rest_tagging
from holdfast_lab.certificate import make_certificate
from holdfast_lab.server import RunningLab
from support.lab_tags import open_rest_sessions, rest_calls, tag_vm
from support.vsphere_sessions import CountingGate, account_of, address_of, session_at

ON_OBJECTS = "*list-attached-tags-on-objects"


def moref(lab: RunningLab, name: str) -> str:
    return lab.lab.machine(name).moid


def texts(reading: TagReading, vm: str) -> list[str]:
    return [each.text for each in reading.vms[vm]]


def read(lab: RunningLab, session: VsphereSession) -> TagReading:
    return read_vm_tags(session, [moref(lab, name) for name in ("web", "db", "proxy")])


@pytest.fixture
def tagged(lab: RunningLab) -> Iterator[RunningLab]:
    tag_vm(lab, "web", "Backup/gold", "Tier/gold", "Backup/a/b")
    tag_vm(lab, "db", "Backup/none")
    yield lab
    bugs = lab.lab.calls.events(event="lab_bug")
    assert not bugs, bugs


def test_the_tags_of_every_vm_are_read_with_their_categories(tagged: RunningLab) -> None:
    with session_at(tagged) as session:
        reading = read(tagged, session)
        assert open_rest_sessions(tagged) == 0
    assert texts(reading, moref(tagged, "web")) == ["Backup/a/b", "Backup/gold", "Tier/gold"]
    assert texts(reading, moref(tagged, "db")) == ["Backup/none"]
    assert texts(reading, moref(tagged, "proxy")) == []
    assert reading.taken_at
    assert rest_calls(tagged)[0] == "POST /api/session"
    assert rest_calls(tagged)[-1] == "DELETE /api/session"


def test_an_older_vcenter_is_asked_in_its_dialect(tagged: RunningLab) -> None:
    with session_at(tagged) as session:
        newer = read(tagged, session)
        rule = {"fault": "NotFound"}
        tagged.lab.misbehaviour.arm(
            "fail_call", match={"method": "* /api/*"}, times=None, parameters=rule
        )
        older = read(tagged, session)
    assert older.vms == newer.vms
    assert "DELETE /rest/com/vmware/cis/session" in rest_calls(tagged)
    assert open_rest_sessions(tagged) == 0


def test_many_vms_are_asked_for_in_bounded_requests(
    tagged: RunningLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tags, "VMS_OF_ONE_REQUEST", 2)
    monkeypatch.setattr(rest_tagging, "OBJECTS_MAX", 2)
    with session_at(tagged) as session:
        reading = read(tagged, session)
    assert texts(reading, moref(tagged, "db")) == ["Backup/none"]
    assert len(reading.vms) == 3
    asked = [each for each in rest_calls(tagged) if "on-objects" in each]
    assert len(asked) == 2


def test_no_vm_is_no_question(tagged: RunningLab) -> None:
    with session_at(tagged) as session:
        assert read_vm_tags(session, []).vms == {}


def test_a_vm_that_is_gone_spoils_no_other(tagged: RunningLab) -> None:
    with session_at(tagged) as session:
        morefs = [moref(tagged, "web"), "vm-4711", moref(tagged, "db"), moref(tagged, "proxy")]
        reading = read_vm_tags(session, morefs)
    assert set(reading.vms) == {*morefs} - {"vm-4711"}
    assert texts(reading, moref(tagged, "web"))[1] == "Backup/gold"


def test_a_tag_that_is_removed_meanwhile_is_no_tag(tagged: RunningLab) -> None:
    with session_at(tagged) as session:
        tagged.lab.misbehaviour.arm(
            "fail_call",
            match={"method": "GET /api/cis/tagging/tag"},
            parameters={"fault": "NotFound"},
            times=None,
        )
        reading = read(tagged, session)
    assert not any(reading.vms.values())


def test_a_missing_right_is_an_absent_capability(tagged: RunningLab) -> None:
    with session_at(tagged) as session:
        tagged.lab.misbehaviour.arm(
            "fail_call",
            match={"method": ON_OBJECTS},
            parameters={"fault": "NoPermission"},
            times=None,
        )
        with pytest.raises(CapabilityAbsent) as caught:
            read(tagged, session)
    assert "System.Read" in str(caught.value.advice) + str(caught.value)
    assert open_rest_sessions(tagged) == 0


def test_a_single_host_has_no_tags_and_is_not_asked(host_lab: RunningLab) -> None:
    with session_at(host_lab) as session, pytest.raises(CapabilityAbsent, match="single host"):
        read_vm_tags(session, ["1"])
    assert rest_calls(host_lab) == []


def test_a_server_without_rest_says_so(host_lab: RunningLab) -> None:
    with (
        session_at(host_lab) as session,
        pytest.raises(CapabilityAbsent, match="no REST interface"),
        RestSession(session),
    ):
        pass


def test_a_swapped_certificate_gets_no_password(tagged: RunningLab) -> None:
    with session_at(tagged) as session:
        tagged.server.use_certificate(make_certificate(tagged.state))
        with pytest.raises(CertificateMismatch):
            read(tagged, session)
        tagged.server.use_certificate(tagged.certificate)
    assert rest_calls(tagged) == []


def test_an_account_that_rest_does_not_accept_is_told(tagged: RunningLab) -> None:
    with session_at(tagged) as session:
        session.account = replace(account_of(tagged), password=Secret(b"wrong"))
        with pytest.raises(AuthenticationFailed):
            read(tagged, session)
        session.account = account_of(tagged)


@pytest.mark.parametrize("kind", ["unavailable", "lost_reply", "lost_request", "expire_session"])
@pytest.mark.parametrize("method", ["POST */session", ON_OBJECTS, "GET */category", "GET */tag"])
def test_what_passes_by_itself_is_waited_for(tagged: RunningLab, kind: str, method: str) -> None:
    with session_at(tagged) as session:
        tagged.lab.misbehaviour.arm(kind, match={"method": method})
        reading = read(tagged, session)
    assert texts(reading, moref(tagged, "web")) == ["Backup/a/b", "Backup/gold", "Tier/gold"]
    # a login whose reply is lost cannot be given back: it ends when it is idle
    lost_login = kind == "lost_reply" and method == "POST */session"
    assert open_rest_sessions(tagged) == int(lost_login)


def test_a_session_that_cannot_be_given_back_is_no_failure(tagged: RunningLab) -> None:
    with session_at(tagged) as session:
        tagged.lab.misbehaviour.arm("unavailable", match={"method": "DELETE *"})
        assert read(tagged, session).vms


def test_every_request_that_fails_for_good_ends_in_an_error_of_ours(tagged: RunningLab) -> None:
    """Whichever request fails: no reading, and no session is left."""
    with session_at(tagged) as session:
        read(tagged, session)
    requests = len(rest_calls(tagged)) - 1  # the last gives the session back
    assert requests > 5
    for number in range(1, requests + 1):
        gate = CountingGate()
        with session_at(tagged, gate=gate, patience_seconds=0.0) as session:
            gate.fail_at = len(gate.calls) + number
            with pytest.raises(VsphereUnavailable):
                read(tagged, session)
        assert open_rest_sessions(tagged) == 0, number


def test_patience_for_tags_is_bounded(tagged: RunningLab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tags, "PATIENCE_SECONDS", 0.3)
    tagged.lab.misbehaviour.arm("unavailable", match={"method": "* /api/*"}, times=None)
    with session_at(tagged, patience_seconds=900.0) as session, pytest.raises(VsphereUnavailable):
        read(tagged, session)


def test_an_answer_that_is_none_is_an_error(
    tagged: RunningLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rest_tagging, "_object", lambda carrier: {"id": carrier.moid})
    with session_at(tagged) as session, pytest.raises(VsphereFailed, match="cannot be read"):
        read(tagged, session)


def test_a_closed_session_asks_nothing(tagged: RunningLab) -> None:
    session = VsphereSession(address_of(tagged), account_of(tagged))
    with session:
        assert session.is_vcenter
        session.stop.set()
        with pytest.raises(Interrupted):
            read(tagged, session)
    assert rest_calls(tagged) == []


def test_the_password_is_in_no_error(tagged: RunningLab) -> None:
    with session_at(tagged, patience_seconds=0.0) as session:
        tagged.lab.misbehaviour.arm("unavailable", match={"method": "POST */session"}, times=None)
        with pytest.raises(HoldfastError) as caught:
            read(tagged, session)
    assert tagged.password not in f"{caught.value!r} {caught.value.line()} {caught.value.advice}"
