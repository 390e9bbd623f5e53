"""The controller's sessions at its vCenters: one each, opened when first needed, kept until the end."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from urllib.parse import urlsplit

from holdfast_common.clock import Clock
from holdfast_common.errors import (
    AuthenticationFailed,
    CapabilityAbsent,
    HoldfastError,
    Interrupted,
    NotFound,
    UsageError,
)
from holdfast_common.logs import Secret
from holdfast_controller.facts import Inventory, TagReading
from holdfast_controller.store.inventory import InventoryTable
from holdfast_controller.store.vcenters import NewVcenter, VcenterRow, VcenterTable
from holdfast_controller.vsphere.inventory import read_inventory
from holdfast_controller.vsphere.pinning import fingerprint
from holdfast_controller.vsphere.session import (
    Account,
    CallGate,
    VcenterAddress,
    VsphereSession,
)
from holdfast_controller.vsphere.tags import read_vm_tags

HTTPS_PORT = 443
CLOSE_SECONDS = 10.0  # for logging out everywhere


class Vcenters:
    """Sessions by vCenter id. Thread-safe; closed once, at the end."""

    def __init__(
        self,
        *,
        table: VcenterTable,
        inventory: InventoryTable,
        clock: Clock,
        gate: CallGate | None = None,
    ) -> None:
        self.table = table
        self.inventory = inventory
        self._clock = clock
        self._gate = gate
        self._lock = threading.Lock()
        self._sessions: dict[str, VsphereSession] = {}

    def add(
        self, *, name: str, url: str, user: str, password: Secret, certificate_sha256: str
    ) -> tuple[VcenterRow, Inventory]:
        """Log in, read everything, and only then remember it.

        Raises: UsageError, CertificateMismatch, AuthenticationFailed, VsphereUnavailable, Refused.
        """
        host, port = host_and_port(url)
        pinned = fingerprint(certificate_sha256)
        address = VcenterAddress(host=host, port=port, certificate_sha256=pinned)
        account = Account(user_name=user, password=password)
        with VsphereSession(
            address, account, clock=self._clock, gate=self._gate, patience_seconds=10.0
        ) as session:
            inventory = read_inventory(session)
            tags = None
            if inventory.server.is_vcenter:
                tags = read_tags(session, [vm.moref for vm in inventory.vms])
        server = inventory.server
        row = self.table.add(
            NewVcenter(
                name=name,
                host=host,
                port=port,
                user_name=user,
                password=password,
                certificate_sha256=pinned,
                instance_uuid=server.instance_uuid,
                product=server.product,
                version=server.version,
                is_vcenter=server.is_vcenter,
            )
        )
        self.inventory.replace(row.vcenter_id, inventory)
        self._keep_tags(row.vcenter_id, tags)
        self.drop(row.vcenter_id)
        return row, inventory

    def session(self, vcenter_id: str) -> VsphereSession:
        """The session at one vCenter, logged in or not yet. Raises: NotFound."""
        row = self.table.vcenter(vcenter_id)
        with self._lock:
            found = self._sessions.get(vcenter_id)
            if found is None:
                found = VsphereSession(
                    VcenterAddress(
                        host=row.host, port=row.port, certificate_sha256=row.certificate_sha256
                    ),
                    Account(user_name=row.user_name, password=self.table.password(vcenter_id)),
                    clock=self._clock,
                    gate=self._gate,
                )
                self._sessions[vcenter_id] = found
            return found

    def refresh(self, vcenter_id: str) -> tuple[Inventory, float]:
        """Read the inventory again; it and the seconds it took. Raises: VsphereFailed and its kin."""
        started = time.monotonic()
        try:
            inventory = read_inventory(self.session(vcenter_id))
        except HoldfastError as error:
            self.table.note_check(vcenter_id, error=str(error))
            raise
        self.inventory.replace(vcenter_id, inventory)
        self.table.note_check(vcenter_id, error="")
        return inventory, time.monotonic() - started

    def refresh_tags(self, vcenter_id: str) -> None:
        """Read the tags of the VMs that are known. Raises: NotFound.

        That they cannot be read is no error here: what is wrong is kept beside them, for whoever needs them.
        """
        if not self.table.vcenter(vcenter_id).is_vcenter:
            return
        morefs = [known.vm.moref for known in self.inventory.vms(vcenter_id)]
        self._keep_tags(vcenter_id, read_tags(self.session(vcenter_id), morefs))

    def _keep_tags(self, vcenter_id: str, tags: TagReading | HoldfastError | None) -> None:
        kept = self.inventory.tags
        if isinstance(tags, TagReading):
            kept.keep(vcenter_id, tags)
        elif isinstance(tags, (CapabilityAbsent, AuthenticationFailed)):
            kept.note_absent(vcenter_id, "; ".join(filter(None, (tags.message, tags.advice))))
        elif tags is not None and not isinstance(tags, Interrupted):
            kept.note_problem(vcenter_id, str(tags))

    def by_instance(self, instance_uuid: str) -> VcenterRow:
        """The vCenter with this identity. Raises: NotFound."""
        for row in self.table.all():
            if row.instance_uuid == instance_uuid:
                return row
        raise NotFound(
            "the vCenter that this VM came from is not known here",
            instance_uuid=instance_uuid,
            advice="add it, or restore into another one with --vcenter",
        )

    def drop(self, vcenter_id: str) -> None:
        """Close a session; the next use opens a new one."""
        with self._lock:
            session = self._sessions.pop(vcenter_id, None)
        if session is not None:
            session.close()

    def close(self) -> None:
        """Close all sessions; one whose vCenter hangs is left to end with the program."""
        with self._lock:
            sessions = list(self._sessions.values())
            self._sessions.clear()
        closing = [threading.Thread(target=each.close, daemon=True) for each in sessions]
        for thread in closing:
            thread.start()
        deadline = time.monotonic() + CLOSE_SECONDS
        for thread in closing:
            thread.join(max(0.0, deadline - time.monotonic()))


def read_tags(session: VsphereSession, morefs: Sequence[str]) -> TagReading | HoldfastError:
    """The tags of these VMs, or why they cannot be read."""
    try:
        return read_vm_tags(session, morefs)
    except HoldfastError as error:
        return error


def host_and_port(url: str) -> tuple[str, int]:
    """``https://host[:port][/sdk]`` or ``host[:port]``. Raises: UsageError."""
    parts = urlsplit(url if "//" in url else f"https://{url}")
    try:
        port = parts.port or HTTPS_PORT
    except ValueError:
        port = 0
    if parts.scheme != "https" or not parts.hostname or not port or parts.username:
        raise UsageError(
            "not the address of a vCenter", url=url, advice="write https://vcenter.example"
        )
    return parts.hostname, port
