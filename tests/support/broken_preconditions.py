"""Every precondition of a backup, each broken alone at a controller over the lab, and mended again."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
from pyVmomi import vim

from holdfast_common.clock import utc_text
from holdfast_common.places import find_places
from holdfast_controller.commands.init import initialise
from holdfast_controller.configuration import (
    ControllerConfiguration,
    DatastoreFloor,
    NotificationSettings,
)
from holdfast_controller.decide.policy import Policy
from holdfast_controller.decide.privileges import NEEDED_RIGHTS
from holdfast_controller.ledger import EntryKind
from holdfast_controller.runs.check_lines import Check
from holdfast_controller.runs.world import World
from holdfast_controller.store import settings as names
from holdfast_controller.vsphere.foreign import reference
from holdfast_lab.certificate import DAYS_VALID
from support.one_process import OneProcess

Worlds = AbstractContextManager[World]
ACCOUNT = "backup@lab.local"
PASSWORD = "backup of the lab"
RIGHTS = frozenset(right.privilege for right in NEEDED_RIGHTS)
PIB = 1 << 50


@dataclass(frozen=True)
class Breakage:
    """``check``: which one must name it, and no other, with ``words`` in it."""

    name: str
    check: str
    words: str
    breaking: Callable[[OneProcess], Worlds]


def give_rights(holdfast: OneProcess, *, but: str = "", password: str = PASSWORD) -> None:
    """Let the controller's account have what it needs, but for one right."""
    lab = holdfast.lab.control
    lab.call("user-add", name=ACCOUNT, password=password, privileges=sorted(RIGHTS - {but}))


def _lab(back: dict[str, Any], command: str, **arguments: Any) -> Callable[[OneProcess], Worlds]:
    """A command of the lab, and what takes it back."""

    @contextmanager
    def broken(holdfast: OneProcess) -> Iterator[World]:
        control = holdfast.lab.control
        control.call(command, **arguments)
        yield holdfast.world
        control.call(command, **{**arguments, **back})

    return broken


def _agent(**changes: Any) -> Callable[[OneProcess], Worlds]:
    @contextmanager
    def broken(holdfast: OneProcess) -> Iterator[World]:
        agent = holdfast.agent
        before = agent.agent
        agent.agent = replace(before, **changes)
        yield holdfast.world
        agent.agent = before

    return broken


def _rows(table: str, column: str, value: object) -> Callable[[OneProcess], Worlds]:
    """Another value in the one row of a table of the controller's database."""

    @contextmanager
    def broken(holdfast: OneProcess) -> Iterator[World]:
        database = holdfast.database
        (before,) = database.execute(f"SELECT {column} FROM {table}", ()).fetchone()
        _set(holdfast, table, column, value)
        yield holdfast.world
        _set(holdfast, table, column, before)

    return broken


def _set(holdfast: OneProcess, table: str, column: str, value: object) -> None:
    with holdfast.database.transaction() as connection:
        connection.execute(f"UPDATE {table} SET {column} = ?", (value,))


def _setting(name: str, value: str) -> Callable[[OneProcess], Worlds]:
    @contextmanager
    def broken(holdfast: OneProcess) -> Iterator[World]:
        before = holdfast.world.settings.get(name)
        holdfast.world.settings.set(name, value)
        yield holdfast.world
        holdfast.world.settings.set(name, before)

    return broken


def _configured(**changes: Any) -> Callable[[OneProcess], Worlds]:
    @contextmanager
    def broken(holdfast: OneProcess) -> Iterator[World]:
        configuration: ControllerConfiguration = holdfast.world.configuration
        changed = msgspec.structs.replace(configuration, **changes)
        yield replace(holdfast.world, configuration=changed)

    return broken


@contextmanager
def _repository_gone(holdfast: OneProcess) -> Iterator[World]:
    folder = holdfast.world.keeper.folder
    away = folder.with_name("away")
    folder.rename(away)
    yield holdfast.world
    away.rename(folder)


@contextmanager
def _other_key(holdfast: OneProcess) -> Iterator[World]:
    """The key file of another controller lies where ours should."""
    other = find_places({"HOLDFAST_HOME": str(holdfast.folder / "other")})
    initialise(
        other, holdfast.folder / "other-repository", ControllerConfiguration(), accepted=True
    )
    ours = holdfast.world.keeper.key_file()
    kept = ours.read_bytes()
    (theirs,) = Path(other.controller_state / "keys").glob("*.key")
    shutil.copyfile(theirs, ours)
    yield holdfast.world
    ours.write_bytes(kept)


@contextmanager
def _audit_changed(holdfast: OneProcess) -> Iterator[World]:
    database = holdfast.database
    holdfast.world.audit.append(actor="test", action="look", object="nothing", result="seen")
    (number,) = database.execute("SELECT max(rowid) FROM audit", ()).fetchone()
    (before,) = database.execute("SELECT result FROM audit WHERE rowid = ?", (number,)).fetchone()
    for value in ("forged", before):
        with database.transaction() as connection:
            connection.execute("UPDATE audit SET result = ? WHERE rowid = ?", (value, number))
        if value == "forged":
            yield holdfast.world


@contextmanager
def _other_certificate(holdfast: OneProcess) -> Iterator[World]:
    holdfast.lab.control.call("certificate-change")
    yield holdfast.world
    _pin(holdfast)


@contextmanager
def _certificate_ends(holdfast: OneProcess) -> Iterator[World]:
    control = holdfast.lab.control
    control.call("certificate-change", days=20)
    _pin(holdfast)
    yield holdfast.world
    control.call("certificate-change", days=DAYS_VALID)
    _pin(holdfast)


def _pin(holdfast: OneProcess) -> None:
    shown = holdfast.lab.control.call("describe")["certificate_sha256"]
    plain = str(shown).replace(":", "").lower()
    _set(holdfast, "vcenters", "certificate_sha256", plain)
    holdfast.world.vcenters.drop(holdfast.vcenter_id)


@contextmanager
def _nobody_listens(holdfast: OneProcess) -> Iterator[World]:
    with _rows("vcenters", "port", 1)(holdfast):
        holdfast.world.vcenters.drop(holdfast.vcenter_id)
        yield holdfast.world
    holdfast.world.vcenters.drop(holdfast.vcenter_id)


@contextmanager
def _other_password(holdfast: OneProcess) -> Iterator[World]:
    give_rights(holdfast, password="another one")
    holdfast.lab.control.call("session-expire")
    yield holdfast.world
    give_rights(holdfast)


@contextmanager
def _other_server(holdfast: OneProcess) -> Iterator[World]:
    lab = holdfast.lab.lab
    before, lab.instance_uuid = lab.instance_uuid, "00000000-0000-0000-0000-00000000beef"
    holdfast.world.vcenters.drop(holdfast.vcenter_id)
    yield holdfast.world
    lab.instance_uuid = before
    holdfast.world.vcenters.drop(holdfast.vcenter_id)


@contextmanager
def _tags_unread(holdfast: OneProcess) -> Iterator[World]:
    inventory = holdfast.world.vcenters.inventory
    inventory.tags.note_problem(holdfast.vcenter_id, "vCenter does not answer")
    yield holdfast.world
    holdfast.world.vcenters.refresh_tags(holdfast.vcenter_id)


def _call_fails(method: str) -> Callable[[OneProcess], Worlds]:
    @contextmanager
    def broken(holdfast: OneProcess) -> Iterator[World]:
        control = holdfast.lab.control
        control.call("misbehave", kind="fail_call", match={"method": method}, times=0)
        yield holdfast.world
        control.call("misbehaviour-disarm")

    return broken


def _without(privilege: str) -> Callable[[OneProcess], Worlds]:
    @contextmanager
    def broken(holdfast: OneProcess) -> Iterator[World]:
        give_rights(holdfast, but=privilege)
        yield holdfast.world
        give_rights(holdfast)

    return broken


@contextmanager
def _no_vcenter(holdfast: OneProcess) -> Iterator[World]:
    database = holdfast.database
    with database.transaction() as connection:
        connection.execute("CREATE TEMP TABLE kept AS SELECT * FROM vcenters")
        connection.execute("DELETE FROM vcenters")
    yield holdfast.world
    with database.transaction() as connection:
        connection.execute("INSERT INTO vcenters SELECT * FROM kept")
        connection.execute("DROP TABLE kept")


@contextmanager
def _proxies_blind(holdfast: OneProcess) -> Iterator[World]:
    """The datastore of ``app`` is on the first host, the proxy's VM on the second."""
    control = holdfast.lab.control
    control.call("vm-host", vm="proxy", host="esx2.lab")
    control.call("datastore-mount", name="vmfs1", hosts=["esx1.lab"])
    yield holdfast.world
    control.call("datastore-mount", name="vmfs1")
    control.call("vm-host", vm="proxy", host="esx1.lab")


@contextmanager
def _not_connected(holdfast: OneProcess) -> Iterator[World]:
    agent = holdfast.agent
    agent.away = True
    yield holdfast.world
    agent.away = False


@contextmanager
def _tracking_off(holdfast: OneProcess) -> Iterator[World]:
    control = holdfast.lab.control
    control.call("vm-tracking", vm="web", enabled=False)
    control.call("user-snapshot", vm="web", name="mine")
    yield holdfast.world
    control.call("user-snapshot", vm="web", name="mine", action="remove")
    control.call("vm-tracking", vm="web", enabled=True)


def _machine(attribute: str, value: object) -> Callable[[OneProcess], Worlds]:
    """Something of ``web`` that no command of the lab sets."""

    @contextmanager
    def broken(holdfast: OneProcess) -> Iterator[World]:
        lab = holdfast.lab.lab
        with lab.lock:
            machine = lab.machine("web")
            before = getattr(machine, attribute)
            setattr(machine, attribute, value)
            lab.touch(machine)
        yield holdfast.world
        with lab.lock:
            setattr(machine, attribute, before)
            lab.touch(machine)

    return broken


@contextmanager
def _consolidation(holdfast: OneProcess) -> Iterator[World]:
    control = holdfast.lab.control
    control.call("user-snapshot", vm="web", name="mine")
    control.call("misbehave", kind="leave_consolidation", match={"vm": "web"})
    control.call("user-snapshot", vm="web", name="mine", action="remove")
    yield holdfast.world
    control.call("misbehaviour-disarm")
    machine = reference(vim.VirtualMachine, holdfast.lab.lab.machine("web").moid)
    task = holdfast.session.call(machine, "ConsolidateVMDisks_Task")
    holdfast.session.wait_for_task(task, what="consolidating")


@contextmanager
def _deep_chain(holdfast: OneProcess) -> Iterator[World]:
    control = holdfast.lab.control
    for number in range(28):
        control.call("user-snapshot", vm="web", name=f"mine {number}")
    yield holdfast.world
    for number in reversed(range(28)):
        control.call("user-snapshot", vm="web", name=f"mine {number}", action="remove")


@contextmanager
def _disk_mode(holdfast: OneProcess) -> Iterator[World]:
    lab = holdfast.lab.lab
    disk = lab.machine("app").disks()[0]
    before, disk.mode = disk.mode, "independent_persistent"
    yield holdfast.world
    disk.mode = before


@contextmanager
def _tools_missing(holdfast: OneProcess) -> Iterator[World]:
    control = holdfast.lab.control
    policies = holdfast.world.policies
    policy = Policy(name="quiet", vms=("web",), start="0 1 * * *", consistency="filesystem")
    stored = policies.create(policy, actor="test")
    control.call("vm-tools", vm="web", running=False)
    yield holdfast.world
    control.call("vm-tools", vm="web", running=True)
    policies.delete(stored.policy_id, revision=stored.revision, actor="test")


@contextmanager
def _debt(holdfast: OneProcess) -> Iterator[World]:
    ledger = holdfast.forgotten_ledger()
    entry_id = ledger.intend(EntryKind.SNAPSHOT, {"vm": "vm-1", "vm_name": "web", "nonce": "n"})
    ledger.ledger.debt(entry_id, "the host does not answer")
    yield holdfast.world
    ledger.ledger.gone(entry_id)


def breakages() -> list[Breakage]:
    """All of them; each right of the account is one."""
    found = [
        Breakage(
            f"right {each.privilege}",
            f"right {each.privilege}",
            each.privilege,
            _without(each.privilege),
        )
        for each in NEEDED_RIGHTS
    ]
    return [*found, *_of_repository(), *_of_vcenter(), *_of_storage(), *_of_agents(), *_of_vms()]


def _of_repository() -> list[Breakage]:
    full = NotificationSettings(repository_free_bytes_min=PIB)
    wrong = NotificationSettings(urls_file="/nowhere/urls")
    yesterday = "a proxy refused the copy"
    return [
        Breakage("repository unreachable", Check.REPOSITORY, "", _repository_gone),
        Breakage("another repository's key", Check.REPOSITORY_KEY, "does not open", _other_key),
        Breakage(
            "repository nearly full",
            Check.REPOSITORY_SPACE,
            "is the floor",
            _configured(notifications=full),
        ),
        Breakage(
            "data lost",
            Check.REPOSITORY_DATA,
            "lost something",
            _setting(names.LOSS_FOUND_AT, "2026-01-01T00:00:00.000000Z"),
        ),
        Breakage(
            "no proxy at the repository",
            Check.REPOSITORY_PROXIES,
            "no connected",
            _agent(repositories=()),
        ),
        Breakage(
            "recovery sheet",
            Check.RECOVERY_SHEET,
            "never confirmed",
            _setting(names.SHEET_CONFIRMED_AT, ""),
        ),
        Breakage(
            "copy of the controller",
            Check.OWN_COPY,
            yesterday,
            _setting(names.SELF_BACKUP_PROBLEM, yesterday),
        ),
        Breakage("audit trail", Check.AUDIT_TRAIL, "is not what was written", _audit_changed),
        Breakage("notifications", Check.NOTIFICATIONS, "", _configured(notifications=wrong)),
        Breakage("debt", Check.DEBT, "our snapshot of VM web", _debt),
    ]


def _of_vcenter() -> list[Breakage]:
    return [
        Breakage("vCenter down", Check.VCENTER_REACHED, "", _nobody_listens),
        Breakage("wrong thumbprint", Check.VCENTER_CERTIFICATE, "pinned is", _other_certificate),
        Breakage("certificate ends", Check.VCENTER_CERTIFICATE_END, "ends", _certificate_ends),
        Breakage("wrong password", Check.VCENTER_LOGIN, "", _other_password),
        Breakage("another vCenter", Check.VCENTER_IDENTITY, "known is", _other_server),
        Breakage(
            "clock of the vCenter",
            Check.VCENTER_CLOCK,
            "s apart",
            _lab({"clock_ahead_seconds": 0}, "settings", clock_ahead_seconds=900),
        ),
        Breakage("tags", Check.VCENTER_TAGS, "", _tags_unread),
        Breakage(
            "inventory unreadable", Check.VCENTER_INVENTORY, "", _call_fails("CreateContainerView")
        ),
        Breakage("rights unknown", Check.RIGHT, "", _call_fails("HasPrivilegeOnEntities")),
        Breakage("no vCenter", Check.VCENTERS, "none is known", _no_vcenter),
        Breakage(
            "host away",
            Check.HOST_CONNECTED,
            "esx2.lab",
            _lab({"connected": True}, "host-connected", host="esx2.lab", connected=False),
        ),
        Breakage(
            "host build",
            Check.HOST_BUILD,
            "lose changed blocks",
            _lab(
                {"version": "8.0.1", "build": "21495797"},
                "host-build",
                host="esx1.lab",
                version="6.0.0",
                build="3000000",
            ),
        ),
    ]


def _of_storage() -> list[Breakage]:
    floor = DatastoreFloor(free_bytes_min=PIB)
    return [
        Breakage(
            "datastore gone",
            Check.DATASTORE_ACCESSIBLE,
            "not accessible",
            _lab({"accessible": True}, "datastore-set", name="nfs2", accessible=False),
        ),
        Breakage("datastore full", Check.DATASTORE_ROOM, "floor", _configured(datastores=floor)),
        Breakage(
            "datastore not mounted", Check.DATASTORE_MOUNTED, "mounted", _agent(datastores=())
        ),
        Breakage(
            "proxy cannot see a datastore",
            Check.DATASTORE_ATTACHED,
            "do not see it",
            _proxies_blind,
        ),
    ]


def _of_agents() -> list[Breakage]:
    return [
        Breakage(
            "all agents revoked",
            Check.AGENTS,
            "revoked",
            _rows("agents", "revoked_at", "2026-01-01"),
        ),
        Breakage("agent away", Check.AGENT_CONNECTED, "not connected", _not_connected),
        Breakage("agent version", Check.AGENT_VERSION, "it is 0.0.9", _agent(version="0.0.9")),
        Breakage(
            "clock of the agent", Check.AGENT_CLOCK, "behind", _agent(clock_ahead_seconds=-900.0)
        ),
        Breakage("agent certificate ends", Check.AGENT_CERTIFICATE, "ends", _agent_certificate),
        Breakage("agent's VM", Check.AGENT_VM, "no VM has", _agent(vm_bios_uuid="4215")),
    ]


@contextmanager
def _agent_certificate(holdfast: OneProcess) -> Iterator[World]:
    soon = utc_text(holdfast.world.clock.now() + timedelta(days=3))
    with _rows("agents", "certificate_ends_at", soon)(holdfast) as world:
        yield world


def _of_vms() -> list[Breakage]:
    return [
        Breakage(
            "VM disconnected", Check.VM_SNAPSHOT, "disconnected", _machine("connected", False)
        ),
        Breakage("consolidation pending", Check.VM_SNAPSHOT, "consolidation", _consolidation),
        Breakage("deep chain", Check.VM_SNAPSHOT, "links", _deep_chain),
        Breakage(
            "old hardware version",
            Check.VM_HARDWARE,
            "hardware version 4",
            _lab({"version": "vmx-19"}, "vm-hardware", vm="web", version="vmx-04"),
        ),
        Breakage("change tracking off", Check.VM_TRACKING, "has snapshots", _tracking_off),
        Breakage("Tools not running", Check.VM_TOOLS, "quiet", _tools_missing),
        Breakage("independent disk", Check.VM_DISKS, "no image backup", _disk_mode),
    ]
