"""The lab's state: every object a client can name, behind one re-entrant lock.

`Lab.lock` guards all of it. Moving disk data happens outside of the lock, in tasks or in HTTP
requests; the lock is taken for each short look or change. `Lab.changed` is notified at each change.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

from pyVmomi import VmomiSupport, vmodl

from holdfast_lab.call_log import CallLog
from holdfast_lab.datastore_paths import DatastorePathError, parse_datastore_path
from holdfast_lab.disk_registry import DiskRegistry
from holdfast_lab.faults import LabError, SoapFault, invalid_argument, invalid_datastore_path
from holdfast_lab.file_locks import FileLocks
from holdfast_lab.host_devices import HostDevices
from holdfast_lab.lab_object import LabObject, ManagedEntity
from holdfast_lab.misbehaviour import Misbehaviour
from holdfast_lab.moments import Moments
from holdfast_lab.sessions import LabUser, Session, Sessions
from holdfast_lab.tags import Tags
from holdfast_lab.tasks import Tasks
from holdfast_lab.wire_types import WireObject

if TYPE_CHECKING:
    from holdfast_lab.datastores import Datastore
    from holdfast_lab.hosts import Host
    from holdfast_lab.machine import Machine

Mode = Literal["vcenter", "host"]
Kind = TypeVar("Kind", bound=LabObject)
LEASE_TIMEOUT_SECONDS = 300.0  # transfer leases without progress end after this; as in vSphere
DEFAULT_USER = "administrator@vsphere.local"
DEFAULT_HOST_USER = "root"


class Lab:
    """One vSphere: a vCenter, or a single host when ``mode`` is ``host``."""

    def __init__(self, state: Path, *, mode: Mode, instance_uuid: str) -> None:
        self.state = state
        self.mode = mode
        self.instance_uuid = instance_uuid
        self.lock = threading.RLock()
        self.changed = threading.Condition(self.lock)
        self.version = 1
        self.objects: dict[str, LabObject] = {}
        self.users: dict[str, LabUser] = {}
        self.certificate_sha1 = ""
        self.certificate_sha256 = ""
        self.certificate_pem = ""
        self.address = ""  # host:port, once the server listens
        self.stopping = threading.Event()
        self.calls = CallLog(state / "calls.jsonl")
        self.misbehaviour = Misbehaviour(self)
        self.moments = Moments()
        self.sessions = Sessions(self)
        self.tags = Tags(self)
        self.tasks = Tasks(self)
        self.disks = DiskRegistry(state / "guest", self.check_space)
        self.file_locks = FileLocks()
        self.host_devices = HostDevices(self)
        self.lease_timeout_seconds = LEASE_TIMEOUT_SECONDS
        self.clock_ahead_seconds = 0
        self._numbers: dict[str, int] = {}
        self._number = 100

    # objects ------------------------------------------------------------------

    def add(self, made: LabObject) -> None:
        """Make an object known to clients. Needs the lock."""
        if made.moid in self.objects:
            raise LabError(f"object {made.moid} exists already")
        self.objects[made.moid] = made
        self.touch(made)

    def remove(self, gone: LabObject) -> None:
        """Forget an object: from now on it is ManagedObjectNotFound. Needs the lock."""
        self.objects.pop(gone.moid, None)
        self.tags.forget(gone.moid)
        gone.forget()
        self.touch(gone)

    def touch(self, *objects: LabObject) -> None:
        """Say that objects changed; wakes whoever waits for updates. Needs the lock."""
        self.version += 1
        for each in objects:
            each.version = self.version
        self.changed.notify_all()

    def find(self, reference: WireObject, session: Session | None = None) -> LabObject:
        """The object behind a reference, the session's own ones included.

        Raises: SoapFault (ManagedObjectNotFound), also when the type is not the object's.
        """
        moid = str(reference._moId)
        found = self.objects.get(moid)
        if found is None and session is not None:
            found = session.objects.get(moid)
        if found is None or not (
            issubclass(found.kind, type(reference)) or issubclass(type(reference), found.kind)
        ):
            raise SoapFault(
                vmodl.fault.ManagedObjectNotFound(obj=reference),
                f"The object '{reference._wsdlName}:{moid}' has already been deleted or has not"
                " been completely created",
            )
        return found

    def get(self, reference: WireObject, kind: type[Kind], session: Session | None = None) -> Kind:
        """The object behind a reference as ``kind``. Raises: SoapFault."""
        if reference is None or not isinstance(reference, VmomiSupport.ManagedObject):
            raise invalid_argument("reference", "an object reference is required")
        found = self.find(reference, session)
        if not isinstance(found, kind):
            raise invalid_argument("reference", f"{found.moid} is of the wrong type")
        return found

    def every(self, kind: type[Kind]) -> list[Kind]:
        """All objects of one class, in the order they were made. Needs the lock."""
        return [each for each in self.objects.values() if isinstance(each, kind)]

    def by_name(self, kind: type[Kind], name: str) -> Kind:
        """The entity of one class with this name. Raises: LabError when there is none or two."""
        found = [
            each
            for each in self.every(kind)
            if isinstance(each, ManagedEntity) and each.name == name
        ]
        if len(found) != 1:
            raise LabError(f"{len(found)} objects of class {kind.__name__} are named {name!r}")
        return found[0]

    def new_id(self, prefix: str) -> str:
        """An id for a new object, such as ``vm-101``; a single host numbers some kinds plainly."""
        if self.mode == "host" and prefix == "vm":
            self._numbers["vm"] = self._numbers.get("vm", 0) + 1
            return str(self._numbers["vm"])
        self._number += 1
        dash = "" if prefix.startswith("group-") or prefix == "domain-c" else "-"
        return f"{prefix}{dash}{self._number}"

    def new_task_id(self, entity: ManagedEntity, description_id: str) -> str:
        """An id for a task in the style of the server."""
        self._number += 1
        if self.mode == "host":
            return f"haTask-{entity.moid}-vim.{description_id}-{self._number}"
        return f"task-{self._number}"

    # what other modules look up -------------------------------------------------

    def machines(self) -> list[Machine]:
        """All virtual machines. Needs the lock."""
        from holdfast_lab.machine import Machine

        return self.every(Machine)

    def machine(self, name: str) -> Machine:
        """The VM with this name. Raises: LabError."""
        from holdfast_lab.machine import Machine

        return self.by_name(Machine, name)

    def datastores(self) -> list[Datastore]:
        """All datastores. Needs the lock."""
        from holdfast_lab.datastores import Datastore

        return self.every(Datastore)

    def datastore(self, name: str) -> Datastore:
        """The datastore with this name. Raises: LabError."""
        from holdfast_lab.datastores import Datastore

        return self.by_name(Datastore, name)

    def hosts(self) -> list[Host]:
        """All hosts. Needs the lock."""
        from holdfast_lab.hosts import Host

        return self.every(Host)

    def resolve(self, path: str) -> tuple[Datastore, Path]:
        """The datastore and the local file of a path such as ``[nfs1] web/web.vmdk``.

        Needs the lock. Raises: SoapFault (InvalidDatastorePath).
        """
        try:
            parsed = parse_datastore_path(path)
            for datastore in self.datastores():
                if datastore.name == parsed.datastore:
                    return datastore, parsed.under(datastore.root)
        except DatastorePathError as error:
            raise invalid_datastore_path(path) from error
        raise invalid_datastore_path(path)

    def datastore_path(self, local: Path) -> str:
        """The reverse of ``resolve``. Raises: LabError when no datastore holds the file."""
        return self.datastore_of(local).path_of(local)

    def datastore_of(self, local: Path) -> Datastore:
        """The datastore that holds a local file. Raises: LabError."""
        for datastore in self.datastores():
            if local.is_relative_to(datastore.root):
                return datastore
        raise LabError(f"{local} lies on no datastore")

    def datastore_name_of(self, local: Path) -> str:
        """The name of the datastore that holds a local file. Raises: LabError."""
        return self.datastore_of(local).name

    def mac_taken(self, mac: str) -> bool:
        """Whether a network card of any VM has this address already. Needs the lock."""
        return any(
            str(card.macAddress).lower() == mac.lower()
            for machine in self.machines()
            for card in machine.devices.network_cards()
        )

    def check_space(self, file: Path, wanted_bytes: int) -> None:
        """May this file grow? Works without the lock: disks ask while theirs is held.

        Raises: SoapFault (NoDiskSpace).
        """
        from holdfast_lab.datastores import Datastore

        for each in tuple(self.objects.values()):
            if isinstance(each, Datastore) and file.is_relative_to(each.root):
                each.check_space(wanted_bytes)
                return

    def vm_name_of(self, reference: WireObject) -> str:
        """The name of the VM a reference is about (the VM, a snapshot of it), or an empty text."""
        found = self.objects.get(str(reference._moId))
        machine = getattr(found, "machine", found)
        return machine.name if machine in self.machines() else ""

    def move_disks(self, machine_name: str, datastore_name: str) -> None:
        """Move a VM's disks to another datastore and wait until it is done. Without the lock."""
        from holdfast_lab.relocation import move_disks_of

        with self.lock:
            machine = self.machine(machine_name)
            datastore = self.datastore(datastore_name)
        move_disks_of(machine, datastore)

    def walk(self, root: ManagedEntity) -> Iterator[ManagedEntity]:
        """Every entity below ``root``, parents first. Needs the lock."""
        for child in root.children():
            yield child
            yield from self.walk(child)

    def describe(self) -> Mapping[str, object]:
        """What ``lab.json`` says, for whoever wants to connect."""
        with self.lock:
            user = self.users[next(iter(self.users))]
            return {
                "url": f"https://{self.address}/sdk",
                "address": self.address,
                "user": user.name,
                "password": user.password,
                "mode": self.mode,
                "instance_uuid": self.instance_uuid,
                "certificate": str(self.state / "certificate.pem"),
                "certificate_sha256": self.certificate_sha256,
                "control_socket": str(self.state / "control.sock"),
                "call_log": str(self.calls.path),
                "devices": str(self.state / "devices"),
                "datastores": {
                    datastore.name: {
                        "kind": datastore.kind_name,
                        "path": str(datastore.root),
                        "url": datastore.url,
                    }
                    for datastore in self.datastores()
                },
            }
