"""Tags beside the inventory, and what is selected by them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from holdfast_common.clock import SystemClock
from holdfast_common.errors import CapabilityAbsent, NotFound, UsageError
from holdfast_common.logs import Secret
from holdfast_controller.facts import Inventory, ServerFacts, TagReading, VmTag
from holdfast_controller.store import inventory, vcenters
from holdfast_controller.store.database import Database
from holdfast_controller.store.inventory import InventoryTable
from holdfast_controller.store.secrets import SecretSeal
from holdfast_controller.store.vcenters import NewVcenter, VcenterTable
from support.vm_facts import VM

GOLD = VmTag(category="Backup", name="gold")
NONE = VmTag(category="Backup", name="none")
TAKEN = "2026-01-01T12:00:00.000000Z"


@dataclass
class Known:
    """Two servers in one database."""

    table: InventoryTable
    vc1: str
    esx1: str

    def tag(self, **tags: tuple[VmTag, ...]) -> None:
        """What was read of vc1, by the VMs' names."""
        vms = {known.vm.name: known.vm.moref for known in self.table.vms(self.vc1)}
        found = {vms[name]: given for name, given in tags.items()}
        self.table.tags.keep(self.vc1, TagReading(taken_at=TAKEN, vms=found))

    def names(self, *selectors: str, exclude: tuple[str, ...] = (), vcenter: str = "") -> list[str]:
        """The VMs that are chosen."""
        chosen = self.table.select(selectors, excludes=exclude, vcenter=vcenter)
        return sorted(known.vm.name for known in chosen)


@pytest.fixture
def known(tmp_path: Path) -> Iterator[Known]:
    database = Database(tmp_path / "controller.sqlite", [vcenters.MIGRATIONS, inventory.MIGRATIONS])
    rows = VcenterTable(database, SystemClock(), SecretSeal(Secret(b"k" * 32)))
    table = InventoryTable(database)
    ids = []
    for name, is_vcenter, vms in (("vc1", True, ("web", "db")), ("esx1", False, ("alone",))):
        row = rows.add(
            NewVcenter(
                name=name,
                host=f"{name}.example",
                port=443,
                user_name="backup",
                password=Secret(b"x"),
                certificate_sha256="ab" * 32,
                instance_uuid=name,
                product="lab",
                version="8.0.1",
                is_vcenter=is_vcenter,
            )
        )
        server = ServerFacts(
            instance_uuid=name, product="lab", version="8", build="1", is_vcenter=is_vcenter
        )
        facts = tuple(
            replace(VM, moref=f"vm-{name}", name=name, instance_uuid=f"uuid {name}") for name in vms
        )
        taken = Inventory(
            server=server, taken_at=TAKEN, vms=facts, hosts=(), datastores=(), places=()
        )
        table.replace(row.vcenter_id, taken)
        ids.append(row.vcenter_id)
    yield Known(table, *ids)
    database.close()


def test_tags_are_kept_with_their_vms(known: Known) -> None:
    assert [each.tags for each in known.table.vms()] == [None, None, None]
    known.tag(web=(GOLD, NONE), db=())
    assert {each.vm.name: each.tags for each in known.table.vms()} == {
        "web": (GOLD, NONE),
        "db": (),
        "alone": None,
    }
    known.table.forget(known.vc1)
    assert known.vc1 not in known.table.tags.all()


def test_vms_are_chosen_and_excluded_by_tag(known: Known) -> None:
    known.tag(web=(GOLD,), db=(NONE,))
    assert known.names("tag:gold") == ["web"]
    assert known.names("tag:Backup/*") == ["db", "web"]
    assert known.names("vc1/*", exclude=("tag:none",)) == ["web"]
    assert known.names("*", exclude=("tag:none",), vcenter="vc1") == ["web"]


def test_a_tag_that_no_vm_carries_chooses_and_excludes_nothing_loudly(
    known: Known,
) -> None:
    known.tag(web=(GOLD,), db=())
    for selectors, excludes in ((("tag:godl",), ()), (("vc1/*",), ("tag:none",))):
        with pytest.raises(NotFound):
            known.table.select(selectors, excludes=excludes)


def test_an_exclusion_by_tag_takes_no_vm_whose_tags_are_not_known(known: Known) -> None:
    known.tag(web=(GOLD,))
    with pytest.raises(CapabilityAbsent, match="the tags of some that are chosen are not known"):
        known.names("vc1/*", exclude=("tag:gold",))
    assert known.names("vc1/*", exclude=("tag:gold", "db")) == []
    known.tag(web=(GOLD,), db=())
    assert known.names("vc1/*", exclude=("tag:gold",)) == ["db"]
    with pytest.raises(CapabilityAbsent) as caught:
        known.names("*", exclude=("tag:gold",))
    assert caught.value.facts["vms"] == "alone"


def test_before_they_were_read_nothing_is_selected_by_tag(known: Known) -> None:
    for vcenter in ("", "vc1", "esx1"):
        with pytest.raises(CapabilityAbsent):
            known.names("tag:gold", vcenter=vcenter)
    with pytest.raises(CapabilityAbsent):
        known.names("web", exclude=("tag:gold",))
    with pytest.raises(UsageError):
        known.names("tag:")
    assert known.names("*") == ["alone", "db", "web"]


def test_tags_that_cannot_be_read_again_stay_and_those_that_are_not_ours_to_read_go(
    known: Known,
) -> None:
    known.table.tags.note_problem(known.vc1, "first")
    assert known.table.tags.sources("vc1")[0].reason == "first"
    known.tag(web=(GOLD,), db=())
    known.table.tags.note_problem(known.vc1, "vSphere does not answer")
    (source,) = known.table.tags.sources("vc1")
    assert (source.taken_at, source.problem) == (TAKEN, "vSphere does not answer")
    assert known.names("tag:gold") == ["web"]
    known.table.tags.note_absent(known.vc1, "no right")
    with pytest.raises(CapabilityAbsent, match="no right"):
        known.names("tag:gold")
    known.tag(web=(), db=(GOLD,))
    assert known.names("tag:gold") == ["db"]
    assert known.table.tags.sources("vc1")[0].problem == ""


def test_tags_of_ten_thousand_vms_are_kept_and_chosen_by(known: Known) -> None:
    vms = {f"vm-{number}": (GOLD,) for number in range(10_000)}
    known.table.tags.keep(known.vc1, TagReading(taken_at=TAKEN, vms={**vms, "vm-db": (NONE,)}))
    assert known.names("tag:none") == ["db"]
