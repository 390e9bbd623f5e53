"""SearchIndex: finding one entity by what a client knows of it."""

from __future__ import annotations

from collections.abc import Callable

from pyVmomi import vim

from holdfast_lab.hosts import Host
from holdfast_lab.inventory import Folder
from holdfast_lab.lab_object import ManagedEntity, escaped_name, plain_name
from holdfast_lab.machine import Machine
from holdfast_lab.method_registry import Call, soap_method


@soap_method("FindByUuid")
def find_by_uuid(call: Call) -> object:
    return next(iter(_by_uuid(call)), None)


@soap_method("FindAllByUuid")
def find_all_by_uuid(call: Call) -> object:
    return _by_uuid(call)


def _by_uuid(call: Call) -> list[object]:
    wanted = call.arguments.text("uuid").lower()
    if not call.arguments.flag("vmSearch", default=True):
        return [each.ref for each in call.lab.hosts() if each.hardware_uuid == wanted]
    instance = call.arguments.flag("instanceUuid", default=False)
    return [
        each.ref
        for each in _machines_in_scope(call)
        if wanted == (each.instance_uuid if instance else each.bios_uuid)
    ]


@soap_method("FindByInventoryPath")
def find_by_inventory_path(call: Call) -> object:
    found: ManagedEntity | None = None
    folders = [each for each in call.lab.every(Folder) if each.parent is None]
    for name in call.arguments.text("inventoryPath").strip("/").split("/"):
        below = found.children() if found is not None else folders[0].children()
        found = _named(below, name)
        if found is None:
            return None
    return found.ref if found is not None else None


@soap_method("FindChild")
def find_child(call: Call) -> object:
    entity = call.lab.get(call.arguments.required("entity", vim.ManagedEntity), ManagedEntity)
    found = _named(entity.children(), call.arguments.text("name"))
    return found.ref if found is not None else None


@soap_method("FindByDatastorePath")
def find_by_datastore_path(call: Call) -> object:
    wanted = call.arguments.text("path")
    return _first(call, lambda each: each.vmx_path == wanted)


@soap_method("FindByDnsName")
def find_by_dns_name(call: Call) -> object:
    return next(iter(_by_dns_name(call)), None)


@soap_method("FindAllByDnsName")
def find_all_by_dns_name(call: Call) -> object:
    return _by_dns_name(call)


def _by_dns_name(call: Call) -> list[object]:
    wanted = call.arguments.text("dnsName").lower()
    if not call.arguments.flag("vmSearch", default=True):
        return [each.ref for each in call.lab.every(Host) if each.name.lower() == wanted]
    return [
        each.ref
        for each in _machines_in_scope(call)
        if each.tools.running and each.guest_host_name.lower() == wanted
    ]


@soap_method("FindByIp")
def find_by_ip(call: Call) -> object:
    wanted = call.arguments.text("ip")
    return _first(call, lambda each: each.tools.running and each.guest_address == wanted)


def _named(entities: list[ManagedEntity], name: str) -> ManagedEntity | None:
    for each in entities:
        if each.name in (name, plain_name(name)) or escaped_name(each.name) == name:
            return each
    return None


def _first(call: Call, fits: Callable[[Machine], bool]) -> object:
    for each in _machines_in_scope(call):
        if fits(each):
            return each.ref
    return None


def _machines_in_scope(call: Call) -> list[Machine]:
    datacenter = call.arguments.optional("datacenter", vim.Datacenter)
    machines = call.lab.machines()
    if datacenter is None:
        return machines
    below = {each.moid for each in call.lab.walk(call.lab.get(datacenter, ManagedEntity))}
    return [each for each in machines if each.moid in below]
