"""What time it is at a vCenter."""

from __future__ import annotations

from datetime import UTC, datetime

from pyVmomi import vim

from holdfast_controller.vsphere.foreign import reference
from holdfast_controller.vsphere.session import VsphereSession


def server_time(session: VsphereSession) -> datetime:
    """The server's clock, aware, UTC. Raises: VsphereUnavailable."""
    found = session.call(reference(vim.ServiceInstance, "ServiceInstance"), "CurrentTime")
    return datetime.fromisoformat(str(found)).astimezone(UTC)
