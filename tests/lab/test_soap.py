"""The wire: requests of other writers than pyVmomi, hostile ones, and values there and back."""

from __future__ import annotations

import datetime
import http.client
import socket
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyVmomi import SoapAdapter, vim, vmodl

from holdfast_lab import soap
from holdfast_lab.faults import SoapFault
from holdfast_lab.server import RunningLab
from support.lab_soap_clients import lax_context

ENVELOPE = '<Envelope xmlns="http://schemas.xmlsoap.org/soap/envelope/"><Body>{}</Body></Envelope>'
ABOUT = (
    '<RetrieveServiceContent xmlns="urn:vim25"><_this type="ServiceInstance">ServiceInstance'
    "</_this></RetrieveServiceContent>"
)


def element(text: str) -> Any:
    return ElementTree.fromstring(text)


def post(lab: RunningLab, body: Any, headers: dict[str, str]) -> tuple[int, bytes]:
    connection = http.client.HTTPSConnection(
        "127.0.0.1", lab.port, context=lax_context(), timeout=20
    )
    try:
        connection.request("POST", "/sdk", body, headers, encode_chunked=True)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def test_a_chunked_body_is_read(lab: RunningLab) -> None:
    data = ENVELOPE.format(ABOUT).encode()
    chunks = [data[at : at + 7] for at in range(0, len(data), 7)]
    status, answer = post(lab, iter(chunks), {"Transfer-Encoding": "chunked"})
    assert status == 200
    assert b"<apiVersion>8.0.1.0</apiVersion>" in answer


@pytest.mark.parametrize(
    "body",
    [
        "",
        "<x",
        "<Envelope/>",
        ENVELOPE.format(""),
        ENVELOPE.format("<Login xmlns='urn:vim25'/>"),
        ENVELOPE.format("<Login xmlns='urn:vim25'><_this type='Nonsense'>x</_this></Login>"),
        ENVELOPE.format("<Login xmlns='urn:vim25'><_this type='string'>x</_this></Login>"),
        ENVELOPE.format(
            "<RetrieveServiceContent><_this type='ServiceInstance'></_this>"
            "</RetrieveServiceContent>"
        ),
        '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa">'
        + "".join(
            f'<!ENTITY {c} "{f"&{b};" * 10}">' for b, c in zip("abcdefgh", "bcdefghi", strict=True)
        )
        + "]><x>&i;</x>",
    ],
)
def test_what_is_no_request_is_an_invalid_request(lab: RunningLab, body: str) -> None:
    status, answer = post(lab, body.encode(), {})
    assert status == 500
    assert b"InvalidRequestFault" in answer


def test_an_unknown_method_is_not_found(lab: RunningLab) -> None:
    body = ENVELOPE.format("<Fly><_this type='ServiceInstance'>ServiceInstance</_this></Fly>")
    status, answer = post(lab, body.encode(), {})
    assert status == 500
    assert b"MethodNotFound" in answer


def test_a_body_that_never_ends_is_cut(lab: RunningLab) -> None:
    context = lax_context()
    with (
        socket.create_connection(("127.0.0.1", lab.port), 20) as plain,
        context.wrap_socket(plain) as connection,
    ):
        connection.sendall(b"POST /sdk HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n")
        assert connection.recv(100) == b""


def test_versions_are_told_before_login(lab: RunningLab) -> None:
    connection = http.client.HTTPSConnection("127.0.0.1", lab.port, context=lax_context())
    connection.request("GET", "/sdk/vimServiceVersions.xml")
    assert b"<name>urn:vim25</name><version>8.0.1.0</version>" in connection.getresponse().read()
    connection.request("GET", "/nothing")
    answer = connection.getresponse()
    assert (answer.status, answer.read()) == (404, b"not found")
    connection.close()


def test_a_prefixed_subtype_is_read_as_that_subtype() -> None:
    text = (
        '<device xmlns:XMLSchema-instance="http://www.w3.org/2001/XMLSchema-instance"'
        ' XMLSchema-instance:type="vim25:VirtualDisk"><key>-1</key>'
        '<backing XMLSchema-instance:type="VirtualDiskFlatVer2BackingInfo">'
        "<fileName>[a] b</fileName><diskMode>persistent</diskMode></backing>"
        "<controllerKey>1000</controllerKey><capacityInKB>8</capacityInKB></device>"
    )
    device = soap.read_value(element(text), vim.vm.device.VirtualDevice, 0)
    assert isinstance(device, vim.vm.device.VirtualDisk)
    assert isinstance(device.backing, vim.vm.device.VirtualDisk.FlatVer2BackingInfo)
    assert (device.key, device.capacityInKB, device.backing.fileName) == (-1, 8, "[a] b")


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("<a>maybe</a>", bool),
        ("<a>12x</a>", int),
        ("<a>flying</a>", vim.VirtualMachine.PowerState),
        ("<a>yesterday</a>", datetime.datetime),
        ("<a><b>1</b></a>", vim.vm.ConfigSpec),
        ("<a><name>x</name><numCPUs>many</numCPUs></a>", vim.vm.ConfigSpec),
        ('<a xmlns:i="http://www.w3.org/2001/XMLSchema-instance" i:type="Nonsense"/>', object),
    ],
)
def test_values_that_do_not_fit_their_type_are_invalid_requests(text: str, kind: Any) -> None:
    with pytest.raises(SoapFault) as raised:
        soap.read_value(element(text), kind, 0)
    assert raised.value.name == "InvalidRequest"


def test_deep_nesting_is_refused_without_exhausting_the_stack() -> None:
    text = "<childSnapshotList>" * 500 + "</childSnapshotList>" * 500
    with pytest.raises(SoapFault):
        soap.read_value(element(text), vim.vm.SnapshotTree, 0)


def written_and_read(value: Any, kind: Any) -> Any:
    text = soap.value_text(value, object)
    wrapped = (
        '<r xmlns="urn:vim25" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"'
        f' xmlns:xsd="http://www.w3.org/2001/XMLSchema">{text}</r>'
    )
    ours = soap.read_value(element(wrapped)[0], object, 0)
    theirs = SoapAdapter.Deserialize(
        text.replace(
            "<returnval",
            '<returnval xmlns="urn:vim25" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"'
            ' xmlns:xsd="http://www.w3.org/2001/XMLSchema"',
            1,
        ),
        object,
    )
    assert type(ours) is type(theirs) is kind
    return ours


@given(st.text(st.characters(blacklist_categories=("Cs", "Cc"))))
def test_any_text_survives_the_wire(text: str) -> None:
    spec = vim.vm.ConfigSpec(name=text, changeTrackingEnabled=True)
    assert written_and_read(spec, vim.vm.ConfigSpec).name == text


@given(st.integers(min_value=-(2**63), max_value=2**63 - 1))
def test_any_long_survives_the_wire(number: int) -> None:
    extent = vim.VirtualMachine.DiskChangeInfo.DiskChangeExtent(start=number, length=1)
    read = written_and_read(extent, vim.VirtualMachine.DiskChangeInfo.DiskChangeExtent)
    assert read.start == number


def test_a_reference_inside_any_type_has_the_schemas_name() -> None:
    text = soap.value_text(vim.VirtualMachine("vm-1", None), object)
    assert 'xsi:type="ManagedObjectReference"' in text
    assert 'type="VirtualMachine">vm-1<' in text
    references: Any = vim.VirtualMachine
    array = soap.value_text(references.Array([references("vm-1", None)]), object)
    assert 'xsi:type="ArrayOfManagedObjectReference"' in array


def test_a_fault_names_its_type_once_and_carries_its_message() -> None:
    fault = SoapFault(vim.fault.NoPermission(privilegeId="a<b"), "no & never")
    text = soap.fault_envelope(fault).decode()
    assert '<NoPermissionFault xmlns="urn:vim25" xsi:type="NoPermission">' in text
    assert "<faultstring>no &amp; never</faultstring>" in text
    assert "<privilegeId>a&lt;b</privilegeId>" in text
    assert text.count("xsi:type") == 1


def test_unreadable_names_of_faults_do_not_break_the_answer() -> None:
    fault = SoapFault(
        vmodl.fault.MethodNotFound(receiver=vim.VirtualMachine("x", None), method="y")
    )
    ElementTree.fromstring(soap.fault_envelope(fault))
