"""A VM's configuration as JSON of ours: what a restore needs to make the VM again.

Data objects of vSphere become ``{"_type": name, property: value, …}`` with the names that the
interface's documentation has, so the text can be read for ever, by people too. References to
managed objects become ``{"_object": "Network:network-12"}``: labels, never used as identities.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from pyVmomi import VmomiSupport, vim

from holdfast_common.errors import FormatError
from holdfast_controller.vsphere.foreign import Foreign

FORMAT: Final = 1
TEXT_BYTES_MAX: Final = 8 << 20  # a configuration from a repository is read whole
DEPTH_MAX: Final = 40
DROPPED_LENGTH_MAX: Final = 100  # a name from a repository, for people
_SKIPPED: Final = frozenset({"dynamicType", "dynamicProperty"})
# What of ``config`` a new VM is made with, besides devices and extraConfig.
_PLAIN: Final = (
    "name",
    "instanceUuid",
    "uuid",
    "guestId",
    "guestFullName",
    "version",
    "firmware",
    "annotation",
    "template",
    "changeTrackingEnabled",
    "memoryHotAddEnabled",
    "cpuHotAddEnabled",
    "cpuHotRemoveEnabled",
    "nestedHVEnabled",
    "swapPlacement",
)
_OBJECTS: Final = (
    "files",
    "bootOptions",
    "flags",
    "cpuAllocation",
    "memoryAllocation",
    "latencySensitivity",
    "managedBy",
    "keyId",
)

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]


def configuration_json(config: Foreign) -> str:
    """``config`` of a VM or snapshot as JSON."""
    hardware = config.hardware
    described: dict[str, Json] = {"format": FORMAT}
    for name in _PLAIN:
        value = getattr(config, name, None)
        if value is not None:
            described[name] = encoded(value)
    for name in _OBJECTS:
        value = getattr(config, name, None)
        if value is not None:
            described[name] = encoded(value)
    described["hardware"] = {
        "numCPU": int(hardware.numCPU),
        "numCoresPerSocket": int(hardware.numCoresPerSocket or 1),
        "memoryMB": int(hardware.memoryMB),
    }
    described["extraConfig"] = {str(each.key): str(each.value) for each in config.extraConfig or []}
    described["devices"] = [encoded(each) for each in hardware.device]
    return json.dumps(described, sort_keys=True)


def parse_configuration(text: str) -> Mapping[str, Json]:
    """The inverse, down to plain values. Raises: FormatError."""
    if len(text.encode()) > TEXT_BYTES_MAX:
        raise FormatError("a VM's configuration is too long", length=len(text))
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FormatError("a VM's configuration is not JSON", cause=str(error)[:200]) from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise FormatError(
            "a VM's configuration has an unknown format",
            format=str(found.get("format")) if isinstance(found, dict) else "none",
        )
    return found


def encoded(value: Foreign) -> Json:
    """A value of pyVmomi's as JSON."""
    if isinstance(value, VmomiSupport.ManagedObject):
        return {"_object": f"{type(value)._wsdlName}:{value._moId}"}
    if isinstance(value, VmomiSupport.DataObject):
        made: dict[str, Json] = {"_type": str(type(value)._wsdlName)}
        for each in value._GetPropertyList():
            item = getattr(value, each.name)
            if each.name in _SKIPPED or item is None or (isinstance(item, list) and not item):
                continue
            made[each.name] = encoded(item)
        return made
    if isinstance(value, list):
        return [encoded(each) for each in value]
    if isinstance(value, bool):
        return bool(value)
    if isinstance(value, VmomiSupport.binary):
        return base64.b64encode(_plain_bytes(value)).decode()
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, type):
        return str(getattr(value, "_wsdlName", value.__name__))
    return str(value)


def _plain_bytes(value: Foreign) -> bytes:
    return bytes(value)


@dataclass(slots=True)
class _Decoding:
    """What was dropped so far, in words."""

    dropped: list[str] = field(default_factory=list)

    def value(self, value: Json, expected: Foreign, depth: int) -> Foreign:
        """Raises: FormatError when it cannot be a value of this type."""
        if depth > DEPTH_MAX:
            raise FormatError("a VM's configuration nests too deeply")
        if value is None or (isinstance(value, dict) and "_object" in value):
            return None
        if isinstance(value, list):
            if not issubclass(expected, list):
                raise FormatError("a list where none belongs", type=expected.__name__)
            items = [self.value(each, expected.Item, depth + 1) for each in value]
            return expected(item for item in items if item is not None)
        if isinstance(value, dict):
            return self._object(value, expected, depth)
        return _decoded_scalar(value, expected)

    def _object(self, value: Mapping[str, Json], expected: Foreign, depth: int) -> Foreign:
        name = str(value.get("_type", ""))
        try:
            kind = VmomiSupport.GuessWsdlType(name)
        except KeyError as error:
            raise FormatError("an unknown type in a VM's configuration", type=name) from error
        if not issubclass(kind, VmomiSupport.DataObject) or (
            expected is not object and not issubclass(kind, expected)
        ):
            raise FormatError("a type where it does not belong", type=name)
        made = kind()
        for each_name, each in value.items():
            if each_name != "_type":
                self._property(made, name, each_name, each, depth)
        return made

    def _property(self, made: Foreign, kind: str, name: str, value: Json, depth: int) -> None:
        """Set it; what this interface does not know, or not so, is left out and remembered."""
        try:
            declared = type(made)._GetPropertyInfo(name)
            setattr(made, name, self.value(value, declared.type, depth + 1))
        except (AttributeError, TypeError, ValueError, FormatError):
            self.dropped.append(f"{kind}.{name}"[:DROPPED_LENGTH_MAX])


def _decoded_scalar(value: Json, expected: Foreign) -> Foreign:
    try:
        if expected is object or expected is bool:
            return value
        if expected is datetime:
            return datetime.fromisoformat(str(value))
        if issubclass(expected, VmomiSupport.binary):
            return VmomiSupport.binary(base64.b64decode(str(value), validate=True))
        return expected(value)
    except (TypeError, ValueError) as error:
        raise FormatError("a value of a wrong type", type=str(expected)) from error


def device_label(device: Mapping[str, Json]) -> str:
    """What people call a device."""
    info = device.get("deviceInfo")
    label = info.get("label") if isinstance(info, dict) else None
    return str(label or device.get("_type", "device"))


def decoded_setting(name: str, described: Mapping[str, Json]) -> tuple[Foreign, tuple[str, ...]]:
    """A property of a VM's specification, and what this interface does not know, left out of it.

    Raises: FormatError for one that is of another type.
    """
    decoding = _Decoding()
    expected = vim.vm.ConfigSpec._GetPropertyInfo(name).type
    return decoding.value(dict(described), expected, 0), tuple(decoding.dropped)


def decoded_device(device: Mapping[str, Json]) -> tuple[Foreign, tuple[str, ...]]:
    """A device of a configuration, and the properties that this interface does not know, left out of it.

    References to managed objects become None: they mean nothing elsewhere.
    Raises: FormatError for a device that this interface does not know at all.
    """
    decoding = _Decoding()
    made = decoding.value(dict(device), vim.vm.device.VirtualDevice, 0)
    return made, tuple(decoding.dropped)
