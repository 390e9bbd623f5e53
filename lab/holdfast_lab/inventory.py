"""The inventory tree: folders and datacenters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyVmomi import vim

from holdfast_lab.faults import SoapFault
from holdfast_lab.lab_object import ManagedEntity, escaped_name, wire_property

if TYPE_CHECKING:
    from holdfast_lab.lab import Lab


class Folder(ManagedEntity):
    """A folder; ``types`` are the kinds of entities it may hold."""

    kind = vim.Folder

    def __init__(
        self,
        lab: Lab,
        moid: str,
        *,
        name: str,
        parent: ManagedEntity | None,
        types: list[Any],
    ) -> None:
        super().__init__(lab, moid, name=name, parent=parent)
        self.types = types
        self.entities: list[ManagedEntity] = []

    def children(self) -> list[ManagedEntity]:
        """What lies in the folder."""
        return list(self.entities)

    def attach_child(self, child: ManagedEntity) -> None:
        """Put an entity into the folder. Raises: SoapFault (DuplicateName)."""
        self.check_name_is_free(child.name)
        child.parent = self
        self.entities.append(child)
        self.lab.touch(self, child)

    def detach_child(self, child: ManagedEntity) -> None:
        """Take an entity out of the folder."""
        if child in self.entities:
            self.entities.remove(child)
            self.lab.touch(self)

    def check_name_is_free(self, name: str) -> None:
        """Raises: SoapFault (DuplicateName)."""
        for each in self.entities:
            if each.name == name:
                raise SoapFault(
                    vim.fault.DuplicateName(name=name, object=each.ref),
                    f"The name '{name}' already exists.",
                )

    def datacenter(self) -> Datacenter | None:
        """The datacenter that the folder is in."""
        above: ManagedEntity | None = self
        while above is not None and not isinstance(above, Datacenter):
            above = above.parent
        return above

    @wire_property("childEntity")
    def child_references(self) -> object:
        return [each.ref for each in self.entities]

    @wire_property("childType")
    def child_types(self) -> object:
        return list(self.types)


class Datacenter(ManagedEntity):
    """A datacenter with its four folders."""

    kind = vim.Datacenter

    def __init__(self, lab: Lab, moid: str, *, name: str, parent: ManagedEntity) -> None:
        super().__init__(lab, moid, name=name, parent=parent)
        host_mode = lab.mode == "host"

        def folder(prefix: str, host_moid: str, folder_name: str, types: list[Any]) -> Folder:
            made = Folder(
                lab,
                host_moid if host_mode else lab.new_id(prefix),
                name=folder_name,
                parent=self,
                types=types,
            )
            lab.add(made)
            return made

        self.vm_folder = folder(
            "group-v", "ha-folder-vm", "vm", [vim.Folder, vim.VirtualMachine, vim.VirtualApp]
        )
        self.host_folder = folder(
            "group-h", "ha-folder-host", "host", [vim.Folder, vim.ComputeResource]
        )
        self.datastore_folder = folder(
            "group-s", "ha-folder-datastore", "datastore", [vim.Folder, vim.Datastore]
        )
        self.network_folder = folder(
            "group-n", "ha-folder-network", "network", [vim.Folder, vim.Network]
        )

    def children(self) -> list[ManagedEntity]:
        """The four folders."""
        return [self.vm_folder, self.host_folder, self.datastore_folder, self.network_folder]

    @wire_property("vmFolder")
    def vm_folder_reference(self) -> object:
        return self.vm_folder.ref

    @wire_property("hostFolder")
    def host_folder_reference(self) -> object:
        return self.host_folder.ref

    @wire_property("datastoreFolder")
    def datastore_folder_reference(self) -> object:
        return self.datastore_folder.ref

    @wire_property("networkFolder")
    def network_folder_reference(self) -> object:
        return self.network_folder.ref

    @wire_property("datastore")
    def datastore_references(self) -> object:
        return [each.ref for each in self.lab.walk(self.datastore_folder) if _is_datastore(each)]

    @wire_property("network")
    def network_references(self) -> object:
        return [each.ref for each in self.network_folder.entities]

    @wire_property("configuration")
    def configuration(self) -> vim.Datacenter.ConfigInfo:
        return vim.Datacenter.ConfigInfo()


def _is_datastore(entity: ManagedEntity) -> bool:
    return entity.kind is vim.Datastore


def inventory_path(entity: ManagedEntity) -> str:
    """The path of an entity below the root folder, as FindByInventoryPath takes it."""
    names: list[str] = []
    above: ManagedEntity | None = entity
    while above is not None and above.parent is not None:
        names.append(escaped_name(above.name))
        above = above.parent
    return "/".join(reversed(names))
