"""Which rights the account that we are logged in as lacks, asked of vSphere for each object. Nothing is changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from pyVmomi import vim

from holdfast_common.errors import CapabilityAbsent, VsphereFailed
from holdfast_controller.decide.privileges import RightOn
from holdfast_controller.vsphere import properties
from holdfast_controller.vsphere.foreign import moref_of, reference
from holdfast_controller.vsphere.session import VsphereSession

ENTITIES_PER_CALL: Final = 500
_KINDS: Final[Mapping[RightOn, type]] = {
    RightOn.VM: vim.VirtualMachine,
    RightOn.DATASTORE: vim.Datastore,
    RightOn.POOL: vim.ResourcePool,
    RightOn.FOLDER: vim.Folder,
}


def lacking(
    session: VsphereSession, on: RightOn, morefs: Sequence[str], privileges: Sequence[str]
) -> dict[str, list[str]]:
    """By privilege the objects on which the account does not hold it; those held everywhere are left out.

    Raises: SourceGone when one of the objects is no more; CapabilityAbsent when the server does not tell rights.
    """
    manager = session.content().authorizationManager
    if manager is None:
        raise CapabilityAbsent("the server does not tell the rights of an account")
    found: dict[str, list[str]] = {}
    for start in range(0, len(morefs), ENTITIES_PER_CALL):
        part = [reference(_KINDS[on], each) for each in morefs[start : start + ENTITIES_PER_CALL]]
        answer = session.call(
            manager,
            "HasPrivilegeOnEntities",
            entity=part,
            sessionId=_session_key(session),
            privId=list(privileges),
        )
        for each in answer or []:
            for right in each.privAvailability or []:
                if not right.isGranted:
                    found.setdefault(str(right.privId), []).append(moref_of(each.entity))
    return found


def _session_key(session: VsphereSession) -> str:
    manager = session.content().sessionManager
    values = properties.read_one(session, manager, ["currentSession"])
    current = values.get("currentSession")
    if current is None:
        raise VsphereFailed("vSphere does not know our own login")
    return str(current.key)
