"""One line of `doctor`: what was looked at, how it is, and what to do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

OK: Final = "ok"
WARNING: Final = "warning"
FAILED: Final = "failed"
NAMES_SHOWN_MAX: Final = 5


class Check(StrEnum):
    """Everything that is looked at. A right of an account is a check of its own: ``RIGHT`` and its name."""

    REPOSITORY = "repository"
    REPOSITORY_KEY = "repository key"
    REPOSITORY_SPACE = "repository space"
    REPOSITORY_DATA = "repository data"
    REPOSITORY_PROXIES = "repository proxies"
    RECOVERY_SHEET = "recovery sheet"
    OWN_COPY = "copy of the controller"
    AUDIT_TRAIL = "audit trail"
    NOTIFICATIONS = "notifications"
    VCENTERS = "vcenters"
    VCENTER_REACHED = "vcenter reached"
    VCENTER_CERTIFICATE = "vcenter certificate"
    VCENTER_CERTIFICATE_END = "vcenter certificate end"
    VCENTER_LOGIN = "vcenter login"
    VCENTER_IDENTITY = "vcenter identity"
    VCENTER_CLOCK = "vcenter clock"
    VCENTER_TAGS = "vcenter tags"
    VCENTER_INVENTORY = "vcenter inventory"
    RIGHT = "right"
    HOST_CONNECTED = "host connected"
    HOST_BUILD = "host build"
    DATASTORE_ACCESSIBLE = "datastore accessible"
    DATASTORE_ROOM = "datastore room"
    DATASTORE_MOUNTED = "datastore mounted"
    DATASTORE_ATTACHED = "datastore attached"
    AGENTS = "agents"
    AGENT_CONNECTED = "agent connected"
    AGENT_VERSION = "agent version"
    AGENT_CLOCK = "agent clock"
    AGENT_CERTIFICATE = "agent certificate"
    AGENT_VM = "agent vm"
    VM_SNAPSHOT = "vm snapshot"
    VM_HARDWARE = "vm hardware"
    VM_TRACKING = "vm tracking"
    VM_TOOLS = "vm tools"
    VM_DISKS = "vm disks"
    OWN_VM = "own vm"
    DEBT = "debt"


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckLine:
    """One check; ``state`` is ok, warning or failed. ``check``: what it looked at, for programs."""

    name: str
    state: str
    detail: str
    advice: str = ""
    check: str = ""


def named(names: Sequence[str]) -> str:
    """``3 VMs: a, b, c`` without the noun: some names and how many more."""
    shown = ", ".join(names[:NAMES_SHOWN_MAX])
    more = len(names) - NAMES_SHOWN_MAX
    return f"{shown} and {more} more" if more > 0 else shown
