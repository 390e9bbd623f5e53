"""Where a restored VM goes: folder, host, resource pool, a datastore for each disk. Asked, or where it came from."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from holdfast_common.errors import NotFound, Refused
from holdfast_common.point_record import DiskRecord, PointRecord
from holdfast_common.units import size_text
from holdfast_controller.facts import DatastoreFacts, HostFacts, PlaceFacts, VmFacts
from holdfast_controller.runs.requests import RestoreVmRequest
from holdfast_controller.vsphere.datastore_files import DatastorePlace, place_of
from holdfast_controller.vsphere.inventory import Surroundings

FREE_BYTES_LEFT_MIN = 1 << 30  # a datastore that is filled to its last byte stops its VMs


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreTarget:
    """``home`` holds the configuration; ``disks`` by the point's device keys."""

    folder: PlaceFacts
    pool_moref: str
    host: HostFacts
    home: DatastorePlace
    disks: Mapping[int, DatastorePlace]

    def datastores(self) -> list[DatastorePlace]:
        """Each once, home first."""
        found = {self.home.moref: self.home}
        found.update({place.moref: place for place in self.disks.values()})
        return list(found.values())


def choose_target(
    around: Surroundings,
    request: RestoreVmRequest,
    record: PointRecord,
    *,
    original: VmFacts | None,
) -> RestoreTarget:
    """What was asked, else where the original is, else the first that can take it.

    ``original`` is the VM as it is in that vCenter now; None: it is not there.
    Raises: NotFound, Refused with what to add to the command.
    """
    stores = {disk.device_key: _datastore_of_disk(around, request, disk) for disk in record.disks}
    home = _named_store(around, request.datastore) if request.datastore else None
    home = home or (stores[record.disks[0].device_key] if stores else None)
    if home is None:
        raise Refused("the point has no disks", point=record.point_id)
    check_room(record.disks, stores)
    host = _host(around, request, original, [home, *stores.values()])
    folder = _folder(around, request, original, home)
    compute = around.places.get(host.compute_moref)
    if compute is None or not compute.root_pool_moref:
        raise Refused("the host has no resource pool", host=host.name)
    same_host = original is not None and original.host_moref == host.moref
    return RestoreTarget(
        folder=folder,
        pool_moref=original.pool_moref
        if original is not None and same_host and original.pool_moref
        else compute.root_pool_moref,
        host=host,
        home=place_of(around, home.moref),
        disks={key: place_of(around, store.moref) for key, store in stores.items()},
    )


def _named_store(around: Surroundings, name: str) -> DatastoreFacts:
    for store in around.names.by_moref.values():
        if name in (store.name, store.datastore_id):
            return store
    known = ", ".join(sorted(store.name for store in around.names.by_moref.values()))
    raise NotFound("there is no such datastore", datastore=name, known=known)


def _datastore_of_disk(
    around: Surroundings, request: RestoreVmRequest, disk: DiskRecord
) -> DatastoreFacts:
    asked = dict(request.disk_datastores).get(disk.device_key) or request.datastore
    if asked:
        return _named_store(around, asked)
    location = disk.chain[-1] if disk.chain else ""
    for store in around.names.by_moref.values():
        if location.startswith(store.datastore_id.rstrip("/") + "/"):
            return store
    raise Refused(
        f"the datastore that {disk.label} came from is not in this vCenter",
        was=location,
        advice=f"add --datastore NAME, or --disk {disk.device_key}=NAME",
    )


def check_room(disks: Sequence[DiskRecord], stores: Mapping[int, DatastoreFacts]) -> None:
    """Restored disks are thin, so what counts is what they hold; where that is not known, their size.

    ``stores``: by the disks' keys. Raises: Refused.
    """
    for store in {store.moref: store for store in stores.values()}.values():
        if not store.accessible:
            raise Refused("the datastore is not accessible", datastore=store.name)
        wanted = sum(
            disk.capacity_bytes if disk.allocated_bytes is None else disk.allocated_bytes
            for disk in disks
            if stores[disk.device_key].moref == store.moref
        )
        if store.free_bytes < wanted + FREE_BYTES_LEFT_MIN:
            raise Refused(
                "the datastore has too little room",
                datastore=store.name,
                free=size_text(store.free_bytes),
                wanted=size_text(wanted + FREE_BYTES_LEFT_MIN),
                advice="choose another with --datastore",
            )


def _host(
    around: Surroundings,
    request: RestoreVmRequest,
    original: VmFacts | None,
    stores: Sequence[DatastoreFacts],
) -> HostFacts:
    needed = {store.moref for store in stores}
    fitting = [
        host
        for host in around.hosts.values()
        if host.connection_state == "connected"
        and not host.in_maintenance
        and needed <= set(host.datastore_morefs)
    ]
    if request.host:
        named = [host for host in around.hosts.values() if host.name == request.host]
        if not named:
            raise NotFound("there is no such host", host=request.host)
        if named[0] not in fitting:
            raise Refused(
                "the host is not connected, is in maintenance, or does not reach the datastores",
                host=request.host,
            )
        return named[0]
    if not fitting:
        raise Refused("no connected host reaches all of these datastores", advice="add --host")
    if original is not None:
        for host in fitting:
            if host.moref == original.host_moref:
                return host
    return min(fitting, key=lambda host: host.name)


def _folder(
    around: Surroundings,
    request: RestoreVmRequest,
    original: VmFacts | None,
    home: DatastoreFacts,
) -> PlaceFacts:
    if request.folder:
        return _named_folder(around, request.folder)
    if original is not None and original.folder_moref in around.places:
        found = around.places[original.folder_moref]
        if found.kind == "Folder":
            return found
    datacenter = around.places.get(home.datacenter_moref)
    if datacenter is None or datacenter.vm_folder_moref not in around.places:
        raise Refused("the datacenter's folder of VMs is not known", advice="add --folder")
    return around.places[datacenter.vm_folder_moref]


def _named_folder(around: Surroundings, text: str) -> PlaceFacts:
    """A folder of VMs, as the inventory shows its path, or with the ``vm`` that vSphere's own paths have."""
    path = "/" + text.strip("/")
    tops = {place.vm_folder_moref for place in around.places.values() if place.vm_folder_moref}
    wanted = [path]
    for place in around.places.values():
        hidden = f"{place.path}/vm"
        if place.vm_folder_moref and (path == hidden or path.startswith(hidden + "/")):
            wanted.append(place.path + path.removeprefix(hidden))
    folders = [place for place in around.places.values() if _is_below(around, place, tops)]
    for each in wanted:
        for place in folders:
            if place.path == each:
                return place
    known = ", ".join(sorted(place.path for place in folders))
    raise NotFound("there is no such folder of VMs", folder=text, known=known[:500])


def _is_below(around: Surroundings, place: PlaceFacts, tops: Collection[str]) -> bool:
    """Whether a folder is one of ``tops`` or below one: hosts and datastores have folders too."""
    while place.kind == "Folder":
        if place.moref in tops:
            return True
        above = around.places.get(place.parent_moref)
        if above is None:
            return False
        place = above
    return False
