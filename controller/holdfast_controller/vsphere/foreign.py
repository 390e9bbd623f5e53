"""Names for what pyVmomi hands us: its classes are made at run time, so no type can say more."""

from __future__ import annotations

from typing import Any, TypeAlias

# A managed object's reference. Only its class and its id count: `VsphereSession.call` binds it.
Reference: TypeAlias = Any
# A data object, a fault or a plain value of pyVmomi's.
Foreign: TypeAlias = Any


def reference(kind: Foreign, moref: str) -> Reference:
    """The reference of an object by its id, good in any login."""
    return kind(moref, None)


def moref_of(value: Reference) -> str:
    """The id of a managed object; empty for None."""
    return "" if value is None else str(value._moId)


def unbound(value: Reference) -> Reference:
    """The same reference without the login it came with."""
    return type(value)(str(value._moId), None)
