from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from holdfast_common.clock import SystemClock
from holdfast_common.errors import CapabilityAbsent, NotFound, Refused, UsageError
from holdfast_common.logs import Secret
from holdfast_controller.facts import Inventory, ServerFacts
from holdfast_controller.store import inventory, vcenters
from holdfast_controller.store.database import Database
from holdfast_controller.store.inventory import InventoryTable
from holdfast_controller.store.secrets import SecretSeal
from holdfast_controller.store.vcenters import NewVcenter, VcenterTable
from support.vm_facts import VM

SERVER = ServerFacts(
    instance_uuid="i-1", product="lab", version="8.0.1", build="1", is_vcenter=True
)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    made = Database(tmp_path / "controller.sqlite", [vcenters.MIGRATIONS, inventory.MIGRATIONS])
    yield made
    made.close()


@pytest.fixture
def table(database: Database) -> VcenterTable:
    return VcenterTable(database, SystemClock(), SecretSeal(Secret(b"k" * 32)))


def new_vcenter(name: str = "vc1", instance_uuid: str = "i-1") -> NewVcenter:
    return NewVcenter(
        name=name,
        host="vc.example",
        port=443,
        user_name="backup",
        password=Secret(b"hunter2"),
        certificate_sha256="ab" * 32,
        instance_uuid=instance_uuid,
        product="vCenter",
        version="8.0.1",
        is_vcenter=True,
    )


def test_a_vcenters_password_is_sealed_in_the_database(table: VcenterTable, tmp_path: Path) -> None:
    row = table.add(new_vcenter())
    assert table.password(row.vcenter_id).reveal() == b"hunter2"
    assert table.named("vc1") == row == table.vcenter(row.vcenter_id)
    files = [path.read_bytes() for path in tmp_path.glob("controller.sqlite*")]
    assert not any(b"hunter2" in data for data in files)
    assert "hunter2" not in repr(row)


def test_the_same_server_added_again_keeps_its_id(table: VcenterTable) -> None:
    first = table.add(new_vcenter())
    again = table.add(replace(new_vcenter(), host="vc2.example", certificate_sha256="cd" * 32))
    assert again.vcenter_id == first.vcenter_id
    assert again.certificate_sha256 == "cd" * 32
    assert [(row.name, row.host) for row in table.all()] == [("vc1", "vc2.example")]

    assert table.password(again.vcenter_id).reveal() == b"hunter2"


def test_a_known_vcenter_by_another_name_is_refused_and_keeps_its_account(
    table: VcenterTable,
) -> None:
    added = table.add(new_vcenter())
    with pytest.raises(Refused, match="known here by another name") as caught:
        table.add(replace(new_vcenter("l2"), user_name="other", password=Secret(b"other")))
    assert caught.value.facts["known_as"] == "vc1"
    assert table.all() == [added]
    assert table.password(added.vcenter_id).reveal() == b"hunter2"


def test_a_name_belongs_to_one_server(table: VcenterTable) -> None:
    table.add(new_vcenter())
    with pytest.raises(Refused):
        table.add(new_vcenter(instance_uuid="i-2"))


def test_a_check_is_remembered_and_a_removed_vcenter_is_unknown(table: VcenterTable) -> None:
    row = table.add(new_vcenter())
    table.note_check(row.vcenter_id, error="did not answer")
    assert table.vcenter(row.vcenter_id).last_error == "did not answer"
    table.remove(row.vcenter_id)
    for ask in (table.vcenter, table.password, table.remove):
        with pytest.raises(NotFound):
            ask(row.vcenter_id)


@pytest.fixture
def known(table: VcenterTable, database: Database) -> InventoryTable:
    row = table.add(new_vcenter())
    kept = InventoryTable(database)
    vms = (
        VM,
        replace(VM, moref="vm-2", name="web2", instance_uuid="50bb", place="/dc1/Berlin"),
        replace(
            VM,
            moref="vm-3",
            name="db",
            instance_uuid="50cc",
            place="/dc1/Berlin2",
            host_name="esx2.lab",
            datastore_names=("vmfs1", "nfs1"),
        ),
    )
    taken = Inventory(server=SERVER, taken_at="now", vms=vms, hosts=(), datastores=(), places=())
    kept.replace(row.vcenter_id, taken)
    return kept


@pytest.mark.parametrize(
    ("selector", "names"),
    [
        ("db", ["db"]),
        ("50bb", ["web2"]),
        ("web*", ["web1", "web2"]),
        ("*", ["db", "web1", "web2"]),
        ("vc1/web?", ["web1", "web2"]),
        ("folder:/dc1/Berlin", ["web1", "web2"]),
        ("folder:dc1/Berlin/web/", ["web1"]),
        ("folder:/dc1/Berlin2", ["db"]),
        ("host:esx2*", ["db"]),
        ("datastore:vmfs1", ["db"]),
        ("datastore:nfs1", ["db", "web1", "web2"]),
    ],
)
def test_selectors_name_vms(known: InventoryTable, selector: str, names: list[str]) -> None:
    assert [each.vm.name for each in known.select([selector])] == names


def test_what_is_excluded_is_not_chosen_though_it_is_named(known: InventoryTable) -> None:
    found = known.select(["*"], excludes=["web2", "datastore:vmfs*"])
    assert [each.vm.name for each in found] == ["web1"]
    assert known.select(["web*"], excludes=["folder:/dc1"]) == []


def test_rule_25_a_selector_that_would_exclude_nothing_is_an_error(known: InventoryTable) -> None:
    with pytest.raises(NotFound) as caught:
        known.select(["web*"], excludes=["wbe2"])
    assert caught.value.facts["selector"] == "wbe2"


def test_a_vm_that_two_selectors_name_is_chosen_once(known: InventoryTable) -> None:
    assert len(known.select(["web*", "web1", "folder:/dc1"])) == 3


def test_rule_25_a_selector_that_names_nothing_is_an_error(known: InventoryTable) -> None:
    with pytest.raises(NotFound):
        known.select(["web*", "mail"])
    with pytest.raises(UsageError):
        known.select(["tag:"])
    with pytest.raises(CapabilityAbsent):
        known.select(["tag:gold"])


def test_facts_come_back_as_they_were(known: InventoryTable) -> None:
    (found,) = known.select(["web1"])
    assert found.vm == VM
    assert (found.vcenter_name, found.taken_at) == ("vc1", "now")
    assert known.surroundings(found.vcenter_id).server == SERVER
    known.forget(found.vcenter_id)
    assert known.vms() == []
    with pytest.raises(NotFound):
        known.surroundings(found.vcenter_id)


def test_a_vm_keeps_the_moment_in_which_it_was_seen_first_also_while_it_is_out_of_sight(
    database: Database, table: VcenterTable
) -> None:
    row = table.add(new_vcenter())
    kept = InventoryTable(database)

    def seen(at: str, *uuids: str) -> dict[str, str]:
        vms = tuple(replace(VM, moref=each, instance_uuid=each) for each in uuids)
        read = Inventory(server=SERVER, taken_at=at, hosts=(), datastores=(), places=(), vms=vms)
        kept.replace(row.vcenter_id, read)
        return {known.vm.instance_uuid: known.first_seen_at for known in kept.vms()}

    assert seen("2026-11-01T00:00:00Z", "a") == {"a": "2026-11-01T00:00:00Z"}
    assert seen("2026-11-02T00:00:00Z", "b") == {"b": "2026-11-02T00:00:00Z"}
    assert seen("2026-11-03T00:00:00Z", "a", "b") == {
        "a": "2026-11-01T00:00:00Z",
        "b": "2026-11-02T00:00:00Z",
    }
    kept.forget(row.vcenter_id)
    assert seen("2026-11-04T00:00:00Z", "a") == {"a": "2026-11-04T00:00:00Z"}


def test_vms_of_an_earlier_release_count_as_seen_for_ever(tmp_path: Path) -> None:
    path = tmp_path / "controller.sqlite"
    before = Database(path, [vcenters.MIGRATIONS, inventory.MIGRATIONS])
    row = VcenterTable(before, SystemClock(), SecretSeal(Secret(b"k" * 32))).add(new_vcenter())
    read = Inventory(
        server=SERVER,
        taken_at="2026-11-01T00:00:00Z",
        hosts=(),
        datastores=(),
        places=(),
        vms=(VM,),
    )
    InventoryTable(before).replace(row.vcenter_id, read)
    before.execute("DROP TABLE inventory_first_seen")
    before.execute("DELETE FROM _sqlite_migrations WHERE name = 'create_first_seen'")
    before.close()
    after = Database(path, [vcenters.MIGRATIONS, inventory.MIGRATIONS])
    kept = InventoryTable(after)
    kept.replace(row.vcenter_id, replace(read, taken_at="2026-11-02T00:00:00Z"))
    (known,) = kept.vms()
    after.close()
    assert known.first_seen_at == ""
