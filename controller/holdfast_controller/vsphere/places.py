"""Folders, datacenters, clusters and pools with their inventory paths, from what was read of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from pyVmomi import vim

from holdfast_controller.facts import PlaceFacts
from holdfast_controller.vsphere.entity_names import escaped_name, plain_name
from holdfast_controller.vsphere.foreign import moref_of
from holdfast_controller.vsphere.properties import ObjectProperties

# Folders that vSphere makes itself below a datacenter: they stand in nobody's paths.
_HIDDEN_FOLDERS: Final = frozenset({"vm", "host", "datastore", "network"})


def places_of(
    found: Sequence[ObjectProperties], root: str
) -> tuple[dict[str, PlaceFacts], dict[str, str]]:
    """Places with their paths, and the datacenter of every place below one."""
    kinds = (vim.Folder, vim.Datacenter, vim.ComputeResource, vim.ResourcePool)
    raw = {each.moref: each for each in found if isinstance(each.reference, kinds)}
    places: dict[str, PlaceFacts] = {}
    datacenters: dict[str, str] = {}
    for moref, each in raw.items():
        line = _line_up(raw, moref)
        for above in line:
            if isinstance(raw[above].reference, vim.Datacenter):
                datacenters[moref] = above
                break
        shown = [step for step in reversed(line) if step != root and not _hidden(raw, step)]
        names = [plain_name(str(raw[step].values.get("name") or "")) for step in shown]
        places[moref] = PlaceFacts(
            moref=moref,
            kind=str(type(each.reference)._wsdlName),
            name=plain_name(str(each.values.get("name") or "")),
            parent_moref=moref_of(each.values.get("parent")),
            path="/" + "/".join(name.replace("/", "%2f") for name in names),
            inventory_path="/".join(escaped_name(name) for name in names),
            root_pool_moref=moref_of(each.values.get("resourcePool")),
            vm_folder_moref=moref_of(each.values.get("vmFolder")),
        )
    return places, datacenters


def _line_up(raw: Mapping[str, ObjectProperties], moref: str) -> list[str]:
    """A place and all above it that are known; the root folder itself is not in every answer."""
    line: list[str] = []
    while moref in raw and moref not in line:
        line.append(moref)
        moref = moref_of(raw[moref].values.get("parent"))
    return line


def _hidden(raw: Mapping[str, ObjectProperties], moref: str) -> bool:
    above = raw.get(moref_of(raw[moref].values.get("parent")))
    return (
        above is not None
        and isinstance(above.reference, vim.Datacenter)
        and str(raw[moref].values.get("name")) in _HIDDEN_FOLDERS
    )
