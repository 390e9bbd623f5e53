"""Foreign faults become ours here, once, where they enter; ``fault`` among the facts keeps their name."""

from __future__ import annotations

from collections.abc import Mapping
from http.client import HTTPException
from typing import Final
from xml.parsers.expat import ExpatError

from pyVmomi import vim

from holdfast_common.errors import (
    AuthenticationFailed,
    CapabilityAbsent,
    HoldfastError,
    SourceGone,
    VsphereBusy,
    VsphereFailed,
    VsphereUnavailable,
)
from holdfast_controller.vsphere.foreign import Foreign, moref_of

# What the network or a server that is being restarted raises through pyVmomi. A request may have
# been carried out although it ended so: whoever starts something looks for it before trying again.
CONNECTION_ERRORS: Final = (OSError, HTTPException, ExpatError)

_KINDS: Final[Mapping[str, type[HoldfastError]]] = {
    "InvalidLogin": AuthenticationFailed,
    "NoPermission": CapabilityAbsent,
    "MethodNotFound": CapabilityAbsent,
    "NotSupported": CapabilityAbsent,
    "NotImplemented": CapabilityAbsent,
    "RestrictedVersion": CapabilityAbsent,
    "ManagedObjectNotFound": SourceGone,
    "TaskInProgress": VsphereBusy,
    "ConcurrentAccess": VsphereBusy,
    "ResourceInUse": VsphereBusy,
    "HostCommunication": VsphereUnavailable,
    "HostNotConnected": VsphereUnavailable,
    "HostNotReachable": VsphereUnavailable,
    "NotAuthenticated": VsphereUnavailable,
}
_ADVICE: Final[Mapping[str, str]] = {
    "InvalidLogin": "check user name and password with `holdfast vcenter test`",
    "NoPermission": "give the account this privilege, or choose a way that does without it",
    "NoDiskSpace": "make room on the datastore",
    "FileLocked": "something else has the file open; see what is attached to the VM or its proxy",
    "TooManySnapshotLevels": "consolidate the VM's snapshots",
}


class SessionLost(VsphereUnavailable):
    """The login ended between two calls that belong together: start them again."""

    code = "vsphere_session_lost"


def fault_name(error: HoldfastError) -> str:
    """The foreign fault that an error of ours came from; empty when there is none."""
    return str(error.facts.get("fault", ""))


def wire_name(fault: Foreign) -> str:
    """The name of a pyVmomi fault as the interface's documentation has it."""
    return str(getattr(type(fault), "_wsdlName", type(fault).__name__))


def fault_text(fault: Foreign) -> str:
    """What the server says about a fault, in one line."""
    text = getattr(fault, "msg", None) or ""
    more = [
        str(getattr(each, "message", "") or "")
        for each in (getattr(fault, "faultMessage", None) or [])
    ]
    return " ".join(" ".join([text, *more]).split())[:500]


def translated(fault: Foreign, *, what: str, moref: str = "") -> HoldfastError:
    """An error of ours for a fault of vSphere (a call's, a task's or a lease's)."""
    name = wire_name(fault)
    kind = _KINDS.get(name, VsphereFailed)
    facts: dict[str, str] = {"fault": name}
    missing = getattr(fault, "obj", None)  # of ManagedObjectNotFound: perhaps an argument
    if moref or missing is not None:
        facts["object"] = moref_of(missing) or moref
    if isinstance(fault, vim.fault.NoPermission) and fault.privilegeId:
        facts["privilege"] = str(fault.privilegeId)
    text = fault_text(fault)
    message = f"{what} failed" + (f": {text}" if text else "")
    if kind is SourceGone:
        message = f"{what} failed: the object is no longer there"
    return kind(message, advice=_ADVICE.get(name, ""), **facts)


def connection_error(error: Exception, *, what: str) -> VsphereUnavailable:
    """An error of ours for a connection that failed or was cut."""
    return VsphereUnavailable(
        f"{what}: vSphere does not answer", cause=f"{type(error).__name__}: {error}"[:300]
    )


def is_not_authenticated(fault: Foreign) -> bool:
    """Whether a fault means that the login ended (which is no missing right)."""
    return isinstance(fault, vim.fault.NotAuthenticated)
