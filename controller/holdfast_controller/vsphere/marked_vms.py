"""The VM that a ledger entry made, wherever it is now and whatever its name: by its id, else by its mark.

Every VM of ours carries a nonce in its settings. A VM without ours is never returned; a copy that
somebody made of a VM of ours has it too, and is not ours.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from pyVmomi import vim

from holdfast_common.errors import Refused, SourceGone, VsphereFailed
from holdfast_controller.ledger import LedgerEntry
from holdfast_controller.vsphere import properties
from holdfast_controller.vsphere.entity_names import plain_name
from holdfast_controller.vsphere.foreign import Foreign, Reference, moref_of, reference
from holdfast_controller.vsphere.new_vm_spec import NONCE_KEY
from holdfast_controller.vsphere.properties import ObjectProperties
from holdfast_controller.vsphere.session import VsphereSession

SETTINGS = "config.extraConfig"
VMX = "config.files.vmPathName"


@dataclass(frozen=True, slots=True, kw_only=True)
class MadePlace:
    """Where and as what an entry's VM was made. ``own_folders``: ``[datastore] folder/`` each."""

    nonce: str
    name: str
    folder_moref: str
    own_folders: tuple[str, ...]

    @classmethod
    def of(cls, entry: LedgerEntry) -> MadePlace:
        """As the ledger keeps it. Raises: VsphereFailed when the entry has no nonce."""
        if not entry.fact("nonce"):
            raise VsphereFailed("a ledger entry of a VM has no nonce", entry=entry.entry_id)
        return cls(
            nonce=entry.fact("nonce"),
            name=entry.fact("vm_name"),
            folder_moref=entry.fact("folder"),
            own_folders=tuple(f"{each}/" for each in json.loads(entry.fact("own_folders") or "[]")),
        )

    def is_home_of(self, found: ObjectProperties) -> bool:
        """Whether a VM lies in a folder of ours on its datastore."""
        vmx = str(found.values.get(VMX) or "")
        return any(vmx.startswith(folder) for folder in self.own_folders)

    def is_named_so(self, found: ObjectProperties) -> bool:
        """Whether a VM has the name, in the folder, that ours was made with."""
        parent = moref_of(found.values.get("parent"))
        return (
            plain_name(str(found.values.get("name"))) == self.name and parent == self.folder_moref
        )


def find_made_vm(session: VsphereSession, entry: LedgerEntry) -> str | None:
    """The moref of the VM of an entry of kind NEW_VM; None: there is none any more.

    Its noted id is tried first, then its name where it was made; when somebody changed both, the whole
    inventory is read.
    Raises: Refused, VsphereFailed when it cannot be told without doubt.
    """
    made = MadePlace.of(entry)
    noted = entry.fact("vm")
    if noted and _is_noted_one(session, noted, made):
        return noted
    for named in vms_named(session, made.folder_moref, made.name):
        if _mark(properties.read_one(session, named, [SETTINGS])) == made.nonce:
            return moref_of(named)
    return find_marked(session, made)


def vms_named(session: VsphereSession, folder_moref: str, name: str) -> list[Reference]:
    """The VMs in a folder that have this plain name; a folder that is gone has none."""
    folder = reference(vim.Folder, folder_moref)
    try:
        children = properties.read_one(session, folder, ["childEntity"]).get("childEntity") or []
        machines = [each for each in children if isinstance(each, vim.VirtualMachine)]
        found = properties.read_many(session, machines, ["name"])
    except SourceGone:
        return []
    return [each.reference for each in found if plain_name(str(each.values.get("name"))) == name]


def find_marked(session: VsphereSession, made: MadePlace) -> str | None:
    """The VM with this mark, looked for in the whole inventory. None, and raises, as above."""
    everything = properties.read_everything(
        session, {vim.VirtualMachine: ("name", "parent", SETTINGS, VMX)}
    )
    ours: list[ObjectProperties] = []
    elsewhere: list[ObjectProperties] = []
    for found in everything:
        mark = _mark(found.values)
        if mark == made.nonce:
            known = made.is_home_of(found) or made.is_named_so(found)
            (ours if known else elsewhere).append(found)
        elif made.is_home_of(found) or (mark is None and made.is_named_so(found)):
            raise Refused(
                "a VM that does not carry our mark is in the place of one of ours",
                vm=str(found.values.get("name")),
                advice="unregister it or move it away; then what is ours is removed by itself",
            )
    if len(ours) == 1:
        return ours[0].moref
    if ours or elsewhere:
        raise Refused(
            "a VM carries our mark but may be somebody's copy of ours",
            vms=", ".join(str(each.values.get("name")) for each in (ours or elsewhere)),
            advice=f"destroy it, or remove its setting {NONCE_KEY} to keep it",
        )
    return None


def _is_noted_one(session: VsphereSession, moref: str, made: MadePlace) -> bool:
    """Whether the VM with this id is still the one that was made. Raises: VsphereFailed."""
    try:
        values = properties.read_one(session, reference(vim.VirtualMachine, moref), [SETTINGS])
    except SourceGone:
        return False
    mark = _mark(values)
    if mark is None:
        raise VsphereFailed("a VM that we made does not show its settings now", vm=moref)
    return mark == made.nonce


def _mark(values: Mapping[str, Foreign]) -> str | None:
    """The nonce among a VM's settings; empty: it has none; None: the settings are not shown."""
    settings = values.get(SETTINGS)
    if settings is None:
        return None
    return next((str(each.value) for each in settings if str(each.key) == NONCE_KEY), "")
