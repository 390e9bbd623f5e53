"""A proxy's own VM as it is now: it may have been switched off or moved since the inventory was read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Final

from pyVmomi import vim

from holdfast_common.errors import SourceGone
from holdfast_controller.decide.hot_add import ProxyVm
from holdfast_controller.facts import HostFacts
from holdfast_controller.vsphere import inventory, properties
from holdfast_controller.vsphere.foreign import moref_of, reference
from holdfast_controller.vsphere.session import VsphereSession

PATHS: Final = (
    "config.instanceUuid",
    "runtime.powerState",
    "runtime.connectionState",
    "runtime.host",
)


def proxy_now(session: VsphereSession, seen: ProxyVm, hosts: Iterable[HostFacts]) -> ProxyVm | None:
    """The same VM today; None when it is no longer there. Raises: VsphereFailed and its kin."""
    known = {host.moref: host for host in hosts}
    try:
        values = properties.read_one(session, reference(vim.VirtualMachine, seen.moref), PATHS)
    except SourceGone:
        values = {}
    if values.get("config.instanceUuid") != seen.instance_uuid:  # registered anew, or gone
        try:
            found = inventory.find_vm(session, instance_uuid=seen.instance_uuid)
        except SourceGone:
            return None
        return ProxyVm.of(found, known.values())
    host_moref = moref_of(values.get("runtime.host"))
    host = known.get(host_moref)
    return replace(
        seen,
        power_state=str(values.get("runtime.powerState") or ""),
        connection_state=str(values.get("runtime.connectionState") or ""),
        host_moref=host_moref,
        host_datastore_morefs=host.datastore_morefs if host is not None else (),
    )
