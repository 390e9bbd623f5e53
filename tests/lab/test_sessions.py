"""Logging in, being thrown out, rights, and tickets."""

from __future__ import annotations

import http.client
import re
from typing import Any

import pytest
from pyVmomi import vim, vmodl

from holdfast_lab.server import RunningLab
from support.lab_soap_clients import (
    PC,
    lax_context,
    logged_in,
    login,
    machine,
    object_spec,
    read,
    view_spec,
    wait,
)


def test_a_wrong_password_is_an_invalid_login(lab: RunningLab) -> None:
    with pytest.raises(vim.fault.InvalidLogin):
        login(lab, password="wrong")


def test_a_second_login_in_one_session_is_refused(lab: RunningLab, service: Any) -> None:
    with pytest.raises(vim.fault.InvalidLogin):
        service.content.sessionManager.Login(lab.user, lab.password)


def test_before_login_only_the_service_content_can_be_read(lab: RunningLab) -> None:
    connection = http.client.HTTPSConnection("127.0.0.1", lab.port, context=lax_context())
    for method, this, extra, wanted in (
        ("RetrieveServiceContent", "ServiceInstance", "", b"RetrieveServiceContentResponse"),
        ("CurrentTime", "ServiceInstance", "", b"NotAuthenticatedFault"),
    ):
        body = (
            '<Envelope xmlns="http://schemas.xmlsoap.org/soap/envelope/"><Body>'
            f'<{method} xmlns="urn:vim25"><_this type="ServiceInstance">{this}</_this>{extra}'
            f"</{method}></Body></Envelope>"
        )
        connection.request("POST", "/sdk", body, {"Content-Type": "text/xml"})
        answer = connection.getresponse()
        assert wanted in answer.read()
        cookie = answer.headers["Set-Cookie"]
        assert re.match(r'vmware_soap_session="[0-9a-f]{40}"; Path=/; HttpOnly; Secure', cookie)
    connection.close()


def test_an_ended_session_is_not_authenticated_and_its_filters_and_views_are_dead(
    lab: RunningLab, service: Any
) -> None:
    content = service.RetrieveContent()
    view = content.viewManager.CreateContainerView(content.rootFolder, [vim.VirtualMachine], True)
    spec = view_spec(view, vim.VirtualMachine, ["name"])
    content.propertyCollector.CreateFilter(spec, True)
    assert lab.control.call("session-expire") >= 1
    with pytest.raises(vim.fault.NotAuthenticated) as raised:
        content.propertyCollector.RetrieveContents([spec])
    assert raised.value.privilegeId == "System.View"
    content.sessionManager.Login(lab.user, lab.password)
    with pytest.raises(vmodl.fault.ManagedObjectNotFound):
        content.propertyCollector.RetrieveContents([spec])
    update = content.propertyCollector.WaitForUpdatesEx("", PC.WaitOptions(maxWaitSeconds=0))
    assert update is None


def test_an_idle_session_ends_and_a_used_one_does_not(
    lab: RunningLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr("holdfast_lab.sessions.monotonic_seconds", lambda: now[0])
    idle, used = login(lab), login(lab)
    for _ in range(3):
        now[0] += 1000
        used.CurrentTime()
    with pytest.raises(vim.fault.NotAuthenticated):
        idle.CurrentTime()
    used.content.sessionManager.Logout()


def test_after_logout_the_session_is_not_authenticated(lab: RunningLab) -> None:
    service = login(lab)
    service.content.sessionManager.Logout()
    with pytest.raises(vim.fault.NotAuthenticated):
        service.CurrentTime()


def test_a_missing_right_names_the_privilege_and_is_no_missing_login(
    lab: RunningLab, service: Any
) -> None:
    lab.control.call("user-add", name="reader", password="pw", privileges=["Datastore.Browse"])
    reader = login(lab, user="reader", password="pw")
    web = machine(reader, "web")
    assert read(reader, web, "name") == {"name": "web"}
    with pytest.raises(vim.fault.NoPermission) as raised:
        web.CreateSnapshot_Task("s", "", False, False)
    assert raised.value.privilegeId == "VirtualMachine.State.CreateSnapshot"
    manager = service.content.authorizationManager
    key = reader.content.sessionManager.currentSession.key
    granted = manager.HasPrivilegeOnEntities(
        [web], key, ["VirtualMachine.State.CreateSnapshot", "Datastore.Browse"]
    )
    assert [each.isGranted for each in granted[0].privAvailability] == [False, True]
    reader.content.sessionManager.Logout()


def test_each_kind_of_change_of_a_vm_needs_its_own_right(lab: RunningLab) -> None:
    rights = ["VirtualMachine.Config.ChangeTracking", "VirtualMachine.Config.Annotation"]
    lab.control.call("user-add", name="backup", password="pw", privileges=rights)
    client = login(lab, user="backup", password="pw")
    web = machine(client, "web")
    wait(client, web.ReconfigVM_Task(vim.vm.ConfigSpec(annotation="mine")))
    removal = vim.vm.device.VirtualDeviceSpec(
        operation="remove", device=vim.vm.device.VirtualDisk(key=2000, capacityInKB=0)
    )
    for spec, missing in (
        (vim.vm.ConfigSpec(annotation="x", name="other"), "VirtualMachine.Config.Rename"),
        (vim.vm.ConfigSpec(deviceChange=[removal]), "VirtualMachine.Config.RemoveDisk"),
    ):
        with pytest.raises(vim.fault.NoPermission) as raised:
            web.ReconfigVM_Task(spec)
        assert raised.value.privilegeId == missing
    with pytest.raises(vim.fault.NoPermission) as raised:
        web.Destroy_Task()
    assert raised.value.privilegeId == "VirtualMachine.Inventory.Delete"
    client.content.sessionManager.Logout()


def test_each_session_sees_itself_as_the_current_one(lab: RunningLab, service: Any) -> None:
    with logged_in(lab) as other:
        ours = service.content.sessionManager.currentSession
        theirs = other.content.sessionManager.currentSession
        assert ours.key != theirs.key
        keys = {each.key for each in service.content.sessionManager.sessionList}
        assert {ours.key, theirs.key} <= keys
        service.content.sessionManager.TerminateSession([theirs.key])
        assert not service.content.sessionManager.SessionIsActive(theirs.key, lab.user)
        other.content.sessionManager.Login(lab.user, lab.password)


def test_a_service_ticket_is_redeemed_once(lab: RunningLab, service: Any) -> None:
    spec = vim.SessionManager.HttpServiceRequestSpec(
        method="httpGet", url=f"https://{lab.address}/folder/web/web.vmx"
    )
    ticket = service.content.sessionManager.AcquireGenericServiceTicket(spec)
    assert ticket.sslThumbprint == lab.certificate.sha1
    with lab.lab.lock:
        redeemed = lab.lab.sessions.redeem_ticket(ticket.id)
        assert redeemed is not None
        assert redeemed.path.endswith("/folder/web/web.vmx")
        assert lab.lab.sessions.redeem_ticket(ticket.id) is None


def test_a_session_that_waits_is_not_idle_but_can_be_ended(lab: RunningLab) -> None:
    import threading

    service = login(lab)
    collector = service.content.propertyCollector
    collector.CreateFilter(object_spec(machine(service, "web"), ["name"]), True)
    version = collector.WaitForUpdatesEx("").version
    faults: list[Exception] = []

    def waits() -> None:
        try:
            collector.WaitForUpdatesEx(version, PC.WaitOptions(maxWaitSeconds=60))
        except vim.fault.NotAuthenticated as fault:
            faults.append(fault)

    waiter = threading.Thread(target=waits)
    waiter.start()
    while not any(each["running"] for each in lab.control.call("session-list")):
        waiter.join(0.01)
    lab.control.call("session-expire")
    waiter.join(10)
    assert faults
