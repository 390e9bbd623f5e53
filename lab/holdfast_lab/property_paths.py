"""Reading a dotted property path, such as ``config.hardware.device[2000].backing``, of an object.

Values come back as the declared pyVmomi type (typed arrays, 64-bit numbers, enumerations), since
inside anyType the wire shows the value's own type.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from pyVmomi import VmomiSupport, vmodl

from holdfast_lab.faults import SoapFault
from holdfast_lab.wire_types import WireObject

if TYPE_CHECKING:
    from holdfast_lab.lab import Lab
    from holdfast_lab.sessions import Session

STEP = re.compile(r"([A-Za-z_]\w*)(?:\[(\"?)([^\]\"]*)\2\])?")


@lru_cache(maxsize=4096)
def parse_path(path: str) -> tuple[tuple[str, str | None], ...]:
    """The steps of a path: property names, each with the key in its brackets."""
    steps: list[tuple[str, str | None]] = []
    position = 0
    while True:
        match = STEP.match(path, position)
        if match is None:
            raise invalid_property(path)
        steps.append((match[1], match[3] if match[3] is not None else None))
        position = match.end()
        if position == len(path):
            return tuple(steps)
        if path[position] != ".":
            raise invalid_property(path)
        position += 1


def invalid_property(path: str) -> SoapFault:
    """The fault for a path that does not exist on the type."""
    return SoapFault(vmodl.query.InvalidProperty(name=path), f"invalid property: {path}")


@lru_cache(maxsize=4096)
def check_path(kind: WireObject, path: str) -> None:
    """Raises: SoapFault (InvalidProperty) when the path cannot exist on ``kind``.

    Only what the declared types tell is checked: subtypes may have more.
    """
    declared = kind
    for name, _ in parse_path(path):
        if not issubclass(declared, (VmomiSupport.ManagedObject, VmomiSupport.DataObject)):
            raise invalid_property(path)
        try:
            declared = declared._GetPropertyInfo(name).type
        except AttributeError as error:
            if declared is not kind and issubclass(declared, VmomiSupport.DataObject):
                return
            raise invalid_property(path) from error
        if issubclass(declared, list):
            declared = declared.Item


def read_path(lab: Lab, reference: WireObject, path: str, session: Session | None) -> object:
    """One value; see ``PropertyReader.read``."""
    return PropertyReader(lab, session).read(reference, path)


class PropertyReader:
    """Reads paths of objects at one moment: ``Lab.lock`` is held from its making to its last use.

    What an object's property holds is built once, however many paths lead into it.
    """

    def __init__(self, lab: Lab, session: Session | None) -> None:
        self.lab = lab
        self.session = session
        self._built: dict[tuple[str, str], object] = {}

    def read(self, reference: WireObject, path: str) -> object:
        """The value of ``path``, or None when it (or something on the way) is unset.

        Raises: SoapFault (InvalidProperty, ManagedObjectNotFound).
        """
        value: Any = reference
        for name, key in parse_path(path):
            if not isinstance(value, (VmomiSupport.ManagedObject, VmomiSupport.DataObject)):
                raise invalid_property(path)
            try:
                declared = type(value)._GetPropertyInfo(name).type
            except AttributeError as error:
                raise invalid_property(path) from error
            value = self._property(value, name)
            if value is None:
                return None
            value = typed(value, declared)
            if key is not None:
                value = item_with_key(value, key)
                if value is None:
                    return None
        if isinstance(value, list) and not value and is_optional_empty(value):
            return None
        return value

    def _property(self, value: WireObject, name: str) -> object:
        if isinstance(value, VmomiSupport.DataObject):
            return getattr(value, name)
        place = (str(value._moId), name)
        if place not in self._built:
            self._built[place] = self.lab.find(value, self.session).read(name, self.session)
        return self._built[place]


def is_optional_empty(value: list[object]) -> bool:
    """An empty untyped list cannot be named on the wire; a typed one can."""
    return not isinstance(value, VmomiSupport.Array)


def item_with_key(value: WireObject, key: str) -> WireObject:
    """The item of a list whose ``key`` (or own text) is ``key``."""
    if not isinstance(value, list):
        return None
    for item in value:
        found = getattr(item, "key", None)
        if isinstance(item, VmomiSupport.ManagedObject):
            found = item._moId
        elif found is None and not isinstance(item, VmomiSupport.DataObject):
            found = item
        if str(found) == key:
            return item
    return None


def typed(value: WireObject, declared: WireObject) -> WireObject:
    """``value`` as the declared pyVmomi type."""
    if declared is object or isinstance(value, VmomiSupport.DataObject):
        return value
    if issubclass(declared, list):
        item = declared.Item
        return declared(typed(each, item) for each in value)
    if isinstance(value, (bool, declared)):
        return value
    if issubclass(declared, (int, float, str)):
        return declared(value)
    return value
