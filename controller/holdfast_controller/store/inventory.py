"""The inventory as it was last read, and the VMs in it that selectors name (see `decide.selection`).

The table is a cache: vSphere itself is asked before anything is done to a VM.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import msgspec
from sqlite_utils import Database as SqliteDatabase
from sqlite_utils import Migrations

from holdfast_common.errors import NotFound
from holdfast_controller.decide.selection import (
    SelectableVm,
    Whereabouts,
    check_selector,
    names_tags,
)
from holdfast_controller.decide.tag_knowledge import check_choosing, check_excluding, told
from holdfast_controller.decide.vm_index import VmIndex
from holdfast_controller.facts import (
    DatastoreFacts,
    HostFacts,
    Inventory,
    PlaceFacts,
    ServerFacts,
    VmFacts,
    VmTag,
)
from holdfast_controller.store.database import Database
from holdfast_controller.store.vm_tags import VmTagTable

MIGRATIONS = Migrations("inventory")
_SEE_LIST: Final = "see `holdfast inventory list`, and `holdfast vcenter refresh`"
_LEFT_OUT: Final = (
    "see `holdfast inventory show` of a VM that should carry it; a tag that the account may not read"
    " is left out by vCenter without a word"
)


@MIGRATIONS()
def create_inventory(database: SqliteDatabase) -> None:
    """VMs by identity, the rest of each vCenter as one document."""
    database.create_table(
        "inventory_vms",
        {
            "vcenter_id": str,
            "moref": str,
            "instance_uuid": str,
            "name": str,
            "taken_at": str,
            "facts": bytes,
        },
        pk=("vcenter_id", "moref"),
        not_null={"instance_uuid", "name", "taken_at", "facts"},
    )
    database.table("inventory_vms").create_index(["instance_uuid"])
    database.table("inventory_vms").create_index(["name"])
    database.create_table(
        "inventory_surroundings",
        {"vcenter_id": str, "taken_at": str, "facts": bytes},
        pk="vcenter_id",
        not_null={"taken_at", "facts"},
    )


@MIGRATIONS()
def create_tags(database: SqliteDatabase) -> None:
    """Tags are read by a way of their own, and may be older than the VMs, or not known."""
    database.create_table(
        "inventory_tags",
        {"vcenter_id": str, "taken_at": str, "problem": str, "vms": bytes},
        pk="vcenter_id",
        not_null={"taken_at", "problem", "vms"},
    )


@MIGRATIONS()
def create_first_seen(database: SqliteDatabase) -> None:
    """Since when a VM is known, also while it is out of sight; empty: since before that was written down."""
    database.create_table(
        "inventory_first_seen",
        {"vcenter_id": str, "instance_uuid": str, "first_seen_at": str},
        pk=("vcenter_id", "instance_uuid"),
        not_null={"first_seen_at"},
    )
    database.execute(
        "INSERT OR IGNORE INTO inventory_first_seen SELECT vcenter_id, instance_uuid, '' FROM inventory_vms"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What VMs live in."""

    server: ServerFacts
    hosts: tuple[HostFacts, ...]
    datastores: tuple[DatastoreFacts, ...]
    places: tuple[PlaceFacts, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownVm:
    """A VM of the cache, with where and when it was seen. ``tags`` None: they are not known.

    ``first_seen_at``: when it was seen for the first time; empty: longer ago than anybody wrote down.
    """

    vcenter_id: str
    vcenter_name: str
    taken_at: str
    vm: VmFacts
    tags: tuple[VmTag, ...] | None = None
    first_seen_at: str = ""


class InventoryTable:
    """Thread-safe; each method is one transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.tags = VmTagTable(database)

    def replace(self, vcenter_id: str, inventory: Inventory) -> None:
        """Keep what was read, instead of what was known of this vCenter before."""
        surroundings = Surroundings(
            server=inventory.server,
            hosts=inventory.hosts,
            datastores=inventory.datastores,
            places=inventory.places,
        )
        rows = [
            (
                vcenter_id,
                vm.moref,
                vm.instance_uuid,
                vm.name,
                inventory.taken_at,
                msgspec.json.encode(vm),
            )
            for vm in inventory.vms
        ]
        with self._database.transaction() as connection:
            connection.execute("DELETE FROM inventory_vms WHERE vcenter_id = ?", (vcenter_id,))
            connection.executemany("INSERT INTO inventory_vms VALUES (?,?,?,?,?,?)", rows)
            connection.execute(
                "INSERT OR IGNORE INTO inventory_first_seen"
                " SELECT vcenter_id, instance_uuid, taken_at FROM inventory_vms WHERE vcenter_id = ?",
                (vcenter_id,),
            )
            connection.execute(
                "INSERT OR REPLACE INTO inventory_surroundings VALUES (?,?,?)",
                (vcenter_id, inventory.taken_at, msgspec.json.encode(surroundings)),
            )

    def forget(self, vcenter_id: str) -> None:
        """Drop everything of one vCenter."""
        with self._database.transaction() as connection:
            connection.execute("DELETE FROM inventory_vms WHERE vcenter_id = ?", (vcenter_id,))
            connection.execute(
                "DELETE FROM inventory_first_seen WHERE vcenter_id = ?", (vcenter_id,)
            )
            connection.execute(
                "DELETE FROM inventory_surroundings WHERE vcenter_id = ?", (vcenter_id,)
            )
            self.tags.forget(vcenter_id)

    def vms(self, vcenter_id: str = "") -> list[KnownVm]:
        """All VMs by name; of one vCenter when named."""
        rows = self._database.execute(
            "SELECT v.vcenter_id, coalesce(c.name, ''), v.taken_at, v.facts, coalesce(f.first_seen_at, '')"
            " FROM inventory_vms v LEFT JOIN vcenters c ON c.vcenter_id = v.vcenter_id"
            " LEFT JOIN inventory_first_seen f"
            " ON f.vcenter_id = v.vcenter_id AND f.instance_uuid = v.instance_uuid"
            " WHERE ? = '' OR v.vcenter_id = ? ORDER BY v.name, v.moref",
            (vcenter_id, vcenter_id),
        ).fetchall()
        tags = self.tags.all()
        return [
            KnownVm(
                vcenter_id=row[0],
                vcenter_name=row[1],
                taken_at=row[2],
                vm=(vm := msgspec.json.decode(row[3], type=VmFacts)),
                tags=tags.get(row[0], {}).get(vm.moref),
                first_seen_at=row[4],
            )
            for row in rows
        ]

    def vm(self, vcenter_id: str, instance_uuid: str) -> KnownVm | None:
        """One VM as it was seen last, without its tags; None: it was not there, or is there more than once."""
        rows = self._database.execute(
            "SELECT coalesce(c.name, ''), v.taken_at, v.facts FROM inventory_vms v"
            " LEFT JOIN vcenters c ON c.vcenter_id = v.vcenter_id"
            " WHERE v.vcenter_id = ? AND v.instance_uuid = ? LIMIT 2",
            (vcenter_id, instance_uuid),
        ).fetchall()
        if len(rows) != 1:
            return None
        ((vcenter_name, taken_at, facts),) = rows
        return KnownVm(
            vcenter_id=vcenter_id,
            vcenter_name=str(vcenter_name),
            taken_at=str(taken_at),
            vm=msgspec.json.decode(facts, type=VmFacts),
        )

    def surroundings(self, vcenter_id: str) -> Surroundings:
        """Hosts, datastores and places of one vCenter. Raises: NotFound when it was never read."""
        row = self._database.execute(
            "SELECT facts FROM inventory_surroundings WHERE vcenter_id = ?", (vcenter_id,)
        ).fetchone()
        if row is None:
            raise NotFound(
                "the inventory of this vCenter was never read",
                vcenter=vcenter_id,
                advice="run `holdfast vcenter refresh`",
            )
        return msgspec.json.decode(row[0], type=Surroundings)

    def taken_at(self, vcenter_id: str) -> str:
        """When the inventory of a vCenter was read; empty: never."""
        row = self._database.execute(
            "SELECT taken_at FROM inventory_surroundings WHERE vcenter_id = ?", (vcenter_id,)
        ).fetchone()
        return "" if row is None else str(row[0])

    def knows_all(self, selectors: Iterable[str]) -> bool:
        """Whether each selector is the very name or identity of VMs that were seen."""
        seen = {text for known in self.vms() for text in (known.vm.name, known.vm.instance_uuid)}
        return set(selectors) <= seen

    def select(
        self, selectors: Iterable[str], *, excludes: Sequence[str] = (), vcenter: str = ""
    ) -> list[KnownVm]:
        """The VMs that any of the selectors names, each once, but for those that ``excludes`` name.

        ``vcenter``: only of this one. Raises: NotFound when one of the selectors names no VM, also one to exclude: it
        protects or spares nothing then, and somebody believes it does; UsageError for one that cannot be answered;
        CapabilityAbsent for one by tag where tags are not known.
        """
        pairs = self.selectable()
        known, index = [each for each, _ in pairs], VmIndex(vm for _, vm in pairs)
        sources = self.tags.sources(vcenter)
        chosen: dict[tuple[str, str], KnownVm] = {}
        for selector in selectors:
            check_selector(selector)
            if names_tags(selector):
                check_choosing(selector, sources)
            chosen |= _named(known, index, selector)
        chosen = {
            identity: each
            for identity, each in chosen.items()
            if vcenter in ("", each.vcenter_name)
        }
        # by tag last: whoever is excluded otherwise needs no tags
        for selector in sorted(excludes, key=names_tags):
            check_selector(selector)
            if names_tags(selector):
                check_excluding(selector, chosen.values(), sources)
            for identity in _named(known, index, selector):
                chosen.pop(identity, None)
        return list(chosen.values())

    def told_of_tags(
        self, now: datetime, *, vcenter: str = "", silent: Sequence[str] = ()
    ) -> list[str]:
        """What whoever selects by tags should know (see `decide.tag_knowledge`)."""
        return told(self.tags.sources(vcenter), self.vms(), now, silent=silent)

    def selectable(self) -> list[tuple[KnownVm, SelectableVm]]:
        """All VMs by name, each with where it is, as selectors ask for it."""
        whereabouts: dict[str, Whereabouts] = {}
        found = []
        for known in self.vms():
            if known.vcenter_id not in whereabouts:
                around = self.surroundings(known.vcenter_id)
                whereabouts[known.vcenter_id] = Whereabouts.of(around.hosts, around.places)
            place = whereabouts[known.vcenter_id]
            found.append((known, place.selectable(known.vcenter_name, known.vm, known.tags)))
        return found


def _named(
    known: Sequence[KnownVm], index: VmIndex, selector: str
) -> dict[tuple[str, str], KnownVm]:
    """By vCenter and moref, in the order of ``known``, which is that of ``index``. Raises: NotFound, UsageError."""
    numbers = sorted(index.named(selector))
    found = {
        (known[number].vcenter_id, known[number].vm.moref): known[number] for number in numbers
    }
    if not found:
        raise NotFound(
            "no VM is named so",
            selector=selector,
            advice=_LEFT_OUT if names_tags(selector) else _SEE_LIST,
        )
    return found
