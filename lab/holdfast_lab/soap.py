"""The wire protocol: bytes of a request -> typed arguments, and answers -> bytes.

pyVmomi has a writer and a reader of answers, but none of requests; the reader of requests is
here. It knows only what the type tables of pyVmomi declare: anything else is InvalidRequest.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from io import StringIO
from typing import Any
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from pyVmomi import Iso8601, SoapAdapter, VmomiSupport, vmodl

from holdfast_lab.faults import SoapFault
from holdfast_lab.wire_types import WireObject

API_VERSION = "8.0.1.0"
WIRE_VERSION = "vim.version.v8_0_1_0"
SOAP_NAMESPACE = "urn:vim25"
XSI = "{http://www.w3.org/2001/XMLSchema-instance}"
DEPTH_MAX = 64  # real requests nest some ten levels; this keeps hostile ones off the stack
ENVELOPE = (
    '<?xml version="1.0" encoding="UTF-8"?>\n'
    '<soapenv:Envelope xmlns:soapenc="http://schemas.xmlsoap.org/soap/encoding/"'
    ' xmlns:soapenv="http://schemas.xmlsoap.org/soap/envelope/"'
    ' xmlns:xsd="http://www.w3.org/2001/XMLSchema"'
    ' xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance">\n'
    "<soapenv:Body>\n{}\n</soapenv:Body>\n</soapenv:Envelope>"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SoapRequest:
    """A request whose arguments are not typed yet: their types depend on the method."""

    method: str
    this: Any  # a pyVmomi ManagedObject without a connection
    elements: Mapping[str, list[Element]]


def local_name(tag: str) -> str:
    """A tag without its namespace."""
    return tag.rsplit("}", 1)[-1]


def invalid_request(message: str) -> SoapFault:
    """The fault for a request that is not what the protocol says."""
    return SoapFault(vmodl.fault.InvalidRequest(), message)


def parse_request(body: bytes) -> SoapRequest:
    """Read an envelope. Raises: SoapFault (InvalidRequest)."""
    try:
        envelope = ElementTree.fromstring(body)  # noqa: S314 - expat itself bounds entity expansion
    except ElementTree.ParseError as error:
        raise invalid_request(f"the request is not XML: {error}") from error
    bodies = [element for element in envelope if local_name(element.tag) == "Body"]
    if len(bodies) != 1 or len(bodies[0]) != 1:
        raise invalid_request("the request has no body with one method")
    operation = bodies[0][0]
    elements: dict[str, list[Element]] = {}
    for element in operation:
        elements.setdefault(local_name(element.tag), []).append(element)
    targets = elements.pop("_this", [])
    if len(targets) != 1:
        raise invalid_request("the request names no object")
    this = read_value(targets[0], VmomiSupport.ManagedObject, 0)
    return SoapRequest(method=local_name(operation.tag), this=this, elements=elements)


@lru_cache(maxsize=4096)
def type_named(name: str) -> WireObject:
    """The pyVmomi type for a wire name with or without prefix."""
    try:
        return VmomiSupport.GuessWsdlType(name.rsplit(":", 1)[-1])
    except KeyError as error:
        raise invalid_request(f"unknown type {name}") from error


@lru_cache(maxsize=1024)
def methods_of(kind: WireObject) -> Mapping[str, Any]:
    """Wire name -> description of each method that ``kind`` declares or inherits."""
    return {method.wsdlName: method for method in kind._GetMethodList()}


def typed_arguments(
    parameters: tuple[Any, ...], elements: Mapping[str, list[Element]]
) -> dict[str, object]:
    """The arguments of a method as pyVmomi values, by wire name. Raises: SoapFault."""
    values: dict[str, object] = {}
    for parameter in parameters:
        found = elements.get(parameter.name, [])
        if issubclass(parameter.type, list):
            item = parameter.type.Item
            values[parameter.name] = parameter.type(read_value(each, item, 0) for each in found)
        elif found:
            values[parameter.name] = read_value(found[0], parameter.type, 0)
        else:
            values[parameter.name] = None
    return values


def read_value(element: Element, declared: WireObject, depth: int) -> WireObject:
    """One element as a value of ``declared``, or of the subtype its xsi:type names."""
    if depth > DEPTH_MAX:
        raise invalid_request("the request nests too deeply")
    if element.get(f"{XSI}nil") in ("true", "1"):
        return None
    kind = declared
    named = element.get(f"{XSI}type")
    if named and declared is not type:
        candidate = type_named(named)
        if declared is object or issubclass(candidate, declared):
            kind = candidate
    if issubclass(kind, list):
        return kind(read_value(child, kind.Item, depth + 1) for child in element)
    if issubclass(kind, VmomiSupport.ManagedObject):
        return read_reference(element, kind)
    if issubclass(kind, VmomiSupport.DataObject):
        return read_data_object(element, kind, depth)
    return read_scalar(element.text or "", kind)


def read_reference(element: Element, declared: WireObject) -> WireObject:
    """A managed object reference: type in an attribute, id as text."""
    kind = type_named(element.get("type") or declared._wsdlName)
    moid = (element.text or "").strip()
    if not moid or not issubclass(kind, VmomiSupport.ManagedObject):
        raise invalid_request("a reference without an id")
    return kind(moid, None)


def read_data_object(element: Element, kind: WireObject, depth: int) -> WireObject:
    """A data object: each child element is one of its properties."""
    children: dict[str, list[Element]] = {}
    for child in element:
        children.setdefault(local_name(child.tag), []).append(child)
    made = kind()
    for name, elements in children.items():
        try:
            declared = kind._GetPropertyInfo(name)
        except AttributeError as error:
            raise invalid_request(f"{kind._wsdlName} has no property {name}") from error
        if issubclass(declared.type, list):
            item = declared.type.Item
            value: Any = declared.type(read_value(each, item, depth + 1) for each in elements)
        else:
            value = read_value(elements[0], declared.type, depth + 1)
        try:
            setattr(made, name, value)
        except TypeError as error:
            raise invalid_request(str(error)) from error
    return made


def read_scalar(text: str, kind: WireObject) -> WireObject:
    """A string, number, boolean, time, binary, enumeration or type name."""
    try:
        if kind is object:
            return text
        if kind is bool:
            return {"true": True, "1": True, "false": False, "0": False}[text.strip()]
        if kind is type:
            return type_named(text.strip())
        if issubclass(kind, VmomiSupport.Enum):
            if text.strip() not in kind.values:
                raise ValueError(f"{text!r} is no {kind._wsdlName}")
            return kind(text.strip())
        if issubclass(kind, VmomiSupport.binary):
            return VmomiSupport.binary(base64.b64decode(text))
        if kind is datetime:
            moment = Iso8601.ParseISO8601(text.strip())
            if moment is None:
                raise ValueError("no ISO 8601 time")
            return moment
        if issubclass(kind, (int, float)):
            return kind(text.strip())
        return kind(text)
    except (ValueError, KeyError, binascii.Error) as error:
        raise invalid_request(f"{text[:80]!r} cannot be read: {error}") from error


class _Writer(SoapAdapter.SoapSerializer):
    """pyVmomi's writer, corrected: a reference inside anyType has its name from the schema."""

    def __init__(self, writer: StringIO) -> None:
        namespaces = {**SoapAdapter.SOAP_NSMAP, SOAP_NAMESPACE: ""}
        base: WireObject = super()
        base.__init__(writer, WIRE_VERSION, namespaces)
        self.outermostAttrs = ""

    def _QName(self, typ: WireObject, defNS: str) -> tuple[str, str]:  # noqa: N803 - pyVmomi's name
        if typ is VmomiSupport.ManagedObject:
            return "", "ManagedObjectReference"
        base: WireObject = super()
        attributes, name = base._QName(typ, defNS)
        return attributes, name


def value_text(value: object, declared: WireObject, *, name: str = "returnval") -> str:
    """``value`` as the element ``name``; nothing when it is None or an empty list of a method."""
    if value is None or (declared is not object and isinstance(value, list) and not value):
        return ""
    writer = StringIO()
    info = VmomiSupport.Object(name=name, type=declared, version=WIRE_VERSION, flags=0)
    serializer: WireObject = _Writer(writer)
    serializer.Serialize(value, info)
    return writer.getvalue()


def answer_envelope(method: str, content: str) -> bytes:
    """The envelope of a successful answer around ``content``."""
    body = f'<{method}Response xmlns="{SOAP_NAMESPACE}">{content}</{method}Response>'
    return ENVELOPE.format(body).encode()


def fault_envelope(fault: SoapFault) -> bytes:
    """The envelope of a fault."""
    writer = StringIO()
    kind = fault.fault._wsdlName
    info = VmomiSupport.Object(name=f"{kind}Fault", type=object, version=WIRE_VERSION, flags=0)
    serializer: WireObject = _Writer(writer)
    namespace = f' xmlns="{SOAP_NAMESPACE}"'
    serializer._SerializeDataObject(fault.fault, info, namespace, SOAP_NAMESPACE)
    message = SoapAdapter.XmlEscape(fault.message)
    return ENVELOPE.format(
        "<soapenv:Fault><faultcode>ServerFaultCode</faultcode>"
        f"<faultstring>{message}</faultstring><detail>{writer.getvalue()}</detail></soapenv:Fault>"
    ).encode()
