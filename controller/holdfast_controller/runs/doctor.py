"""Every precondition, looked at one by one, each with what to do about it."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from holdfast_common.clock import parse_utc
from holdfast_common.errors import HoldfastError
from holdfast_common.units import GIB, size_text
from holdfast_controller.notification_urls import notification_urls
from holdfast_controller.runs.debts import debt_text, shortened
from holdfast_controller.runs.key_keeper import TAKEN_OVER_ADVICE
from holdfast_controller.runs.notifier import sending_problem
from holdfast_controller.runs.recovery_proof import challenge_from_text
from holdfast_controller.runs.repository_verdict import repository_verdict
from holdfast_controller.runs.self_backup import copy_verdict
from holdfast_controller.runs.world import World
from holdfast_controller.store import settings as names
from holdfast_controller.store.vcenters import VcenterRow
from holdfast_controller.vsphere.inventory import read_server
from holdfast_controller.vsphere.pinning import fetch_certificate
from holdfast_controller.vsphere.server_clock import server_time

OK: Final = "ok"
WARNING: Final = "warning"
FAILED: Final = "failed"
REPOSITORY_FREE_BYTES_MIN: Final = 10 * GIB
CERTIFICATE_LEFT_MIN: Final = timedelta(days=7)
CLOCK_DIFFERENCE_SECONDS_MAX: Final = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckLine:
    """One check; ``state`` is ok, warning or failed."""

    name: str
    state: str
    detail: str
    advice: str = ""


def examine(world: World) -> list[CheckLine]:
    """All checks. Never raises for what it checks."""
    lines = [*_repository(world), _data(world), _recovery_sheet(world), _own_copy(world)]
    lines.append(_audit(world))
    vcenters = world.vcenters.table.all()
    if not vcenters:
        lines.append(
            CheckLine(
                name="vCenters",
                state=WARNING,
                detail="none is known",
                advice="add one with `holdfast vcenter add`",
            )
        )
    for row in vcenters:
        lines.extend(test_vcenter(world, row))
    lines.extend(_agents(world))
    lines.extend(_reach(world))
    lines.extend(_debts(world))
    lines.extend(_unprotected(world))
    lines.append(notifications_line(world))
    return lines


def notifications_line(world: World) -> CheckLine:
    """Whether anybody is told, and whether it arrives as far as we can see."""
    name, settings = "notifications", world.configuration.notifications
    try:
        urls = notification_urls(settings)
    except HoldfastError as error:
        return CheckLine(name=name, state=FAILED, detail=str(error), advice=error.advice)
    if not urls:
        return CheckLine(name=name, state=OK, detail="nobody is told anything: none are set up")
    problem = sending_problem(world)
    return CheckLine(
        name=name,
        state=WARNING if problem else OK,
        detail=problem or f"addresses: {len(urls)}",
    )


def test_vcenter(world: World, row: VcenterRow) -> list[CheckLine]:
    """Certificate, login, clock, inventory of one vCenter."""
    name = f"vCenter {row.name}"
    lines = []
    try:
        shown = fetch_certificate(row.host, row.port)
    except HoldfastError as error:
        return [
            CheckLine(
                name=name,
                state=FAILED,
                detail=str(error),
                advice="check its address, the network, and that it runs",
            )
        ]
    if shown.sha256 != row.certificate_sha256:
        return [
            CheckLine(
                name=f"{name}: certificate",
                state=FAILED,
                detail=f"it shows {shown.sha256}, pinned is {row.certificate_sha256}",
                advice="if it was renewed, add the vCenter again and look at the fingerprint",
            )
        ]
    lines.append(CheckLine(name=f"{name}: certificate", state=OK, detail="the pinned one"))
    try:
        session = world.vcenters.session(row.vcenter_id)
        before = world.clock.now()
        server = read_server(session)
        seconds = abs((server_time(session) - before).total_seconds())
    except HoldfastError as error:
        world.vcenters.table.note_check(row.vcenter_id, error=str(error))
        lines.append(
            CheckLine(
                name=f"{name}: login",
                state=FAILED,
                detail=error.line(),
                advice=error.advice or "check user and password: add the vCenter again",
            )
        )
        return lines
    world.vcenters.table.note_check(row.vcenter_id, error="")
    lines.append(
        CheckLine(name=f"{name}: login", state=OK, detail=f"{server.product} {server.version}")
    )
    if server.instance_uuid != row.instance_uuid:
        lines.append(
            CheckLine(
                name=f"{name}: identity",
                state=FAILED,
                detail=f"its instance is {server.instance_uuid}, known is {row.instance_uuid}",
                advice="this is another vCenter: add it under a name of its own",
            )
        )
    late = seconds > CLOCK_DIFFERENCE_SECONDS_MAX
    lines.append(
        CheckLine(
            name=f"{name}: clock",
            state=WARNING if late else OK,
            detail=f"{seconds:.0f} s apart",
            advice="set both clocks by NTP" if late else "",
        )
    )
    return [*lines, *_tags(world, row)]


def _tags(world: World, row: VcenterRow) -> list[CheckLine]:
    """A single host has none; of a vCenter they are read with its inventory."""
    name = f"vCenter {row.name}: tags"
    for source in world.vcenters.inventory.tags.sources(row.name):
        if source.known and not source.problem:
            return [CheckLine(name=name, state=OK, detail=f"read at {source.taken_at[:19]}")]
        if source.is_vcenter:
            advice = (
                "VMs cannot be selected by tag: let the account read (System.Read) tags, or wait"
            )
            return [CheckLine(name=name, state=WARNING, detail=source.reason, advice=advice)]
    return []


def _repository(world: World) -> list[CheckLine]:
    name = "repository"
    try:
        world.keeper.keys()
    except HoldfastError as error:
        return [CheckLine(name=name, state=FAILED, detail=error.line(), advice=error.advice)]
    folder = world.keeper.folder
    free = shutil.disk_usage(folder).free
    low = free < REPOSITORY_FREE_BYTES_MIN
    return [
        CheckLine(
            name=name,
            state=OK,
            detail=f"{world.keeper.repository_id} in {folder}, its key opens it",
        ),
        CheckLine(
            name="repository: free space",
            state=WARNING if low else OK,
            detail=f"{size_text(free)} free",
            advice="give it more room before it is full" if low else "",
        ),
    ]


def _data(world: World) -> CheckLine:
    name = "repository: data"
    verdict = repository_verdict(world)
    if verdict.damage:
        return CheckLine(
            name=name,
            state=FAILED,
            detail=verdict.damage,
            advice="see `holdfast job show` for what is lost; restore from other points",
        )
    if verdict.doubt:
        return CheckLine(
            name=name, state=WARNING, detail=verdict.doubt, advice="run `holdfast check`"
        )
    never = "not checked yet: `holdfast check` does it"
    detail = f"whole at the last check ({verdict.checked})" if verdict.checked else never
    return CheckLine(name=name, state=OK, detail=detail)


def _recovery_sheet(world: World) -> CheckLine:
    if world.settings.get(names.SHEET_CONFIRMED_AT):
        return CheckLine(name="recovery sheet", state=OK, detail="confirmed")
    if not world.settings.get(names.REPOSITORY_ID):
        return CheckLine(
            name="recovery sheet", state=OK, detail="none yet: it comes with the repository"
        )
    challenge = challenge_from_text(world.settings.get(names.SHEET_CHALLENGE))
    wanted = " and ".join(str(number) for number in challenge.numbers)
    return CheckLine(
        name="recovery sheet",
        state=FAILED,
        detail="never confirmed; no backup will start",
        advice=f"type its groups {wanted} back with `holdfast key recovery`",
    )


def _own_copy(world: World) -> CheckLine:
    name = "copy of the controller"
    taken_over = world.settings.get(names.TAKEN_OVER)
    if taken_over:
        return CheckLine(name=name, state=FAILED, detail=taken_over, advice=TAKEN_OVER_ADVICE)
    if not world.keeper.has_repository:
        detail = "none yet: it is made as soon as there is a repository"
        return CheckLine(name=name, state=OK, detail=detail)
    verdict = copy_verdict(world)
    advice = "look at the controller's log, and at the room in the repository and in its own folder"
    if verdict.problem:
        return CheckLine(name=name, state=WARNING, detail=verdict.problem, advice=advice)
    if not verdict.made_at:
        return CheckLine(
            name=name,
            state=WARNING,
            detail="there is none yet: a lost controller could not be brought back",
            advice=f"it is made within a minute of the controller's start; else {advice}",
        )
    detail = f"made {verdict.made_at[:19]}, in the repository, for its recipients alone"
    return CheckLine(name=name, state=OK, detail=detail)


def _audit(world: World) -> CheckLine:
    broken = world.audit.first_broken()
    if broken is None:
        return CheckLine(name="audit trail", state=OK, detail="unbroken")
    return CheckLine(
        name="audit trail",
        state=FAILED,
        detail=f"entry {broken} is not what was written",
        advice="somebody changed the controller's database: compare it with a backup",
    )


def _agents(world: World) -> list[CheckLine]:
    connected = {agent.agent_id for agent in world.link.connected()}
    lines = []
    joined = world.agents.all()
    rows = [row for row in joined if not row.revoked_at]
    for row in rows:
        name = f"agent {row.host_name}"
        if row.agent_id not in connected:
            lines.append(
                CheckLine(
                    name=name,
                    state=FAILED,
                    detail=f"not connected; last seen {row.last_seen_at or 'never'}",
                    advice="start `holdfast-agent run` there, and check that it reaches the controller",
                )
            )
            continue
        lines.append(CheckLine(name=name, state=OK, detail="connected"))
        left = parse_utc(row.certificate_ends_at) - world.clock.now()
        if left < CERTIFICATE_LEFT_MIN:
            lines.append(
                CheckLine(
                    name=f"{name}: certificate",
                    state=WARNING,
                    detail=f"ends {row.certificate_ends_at}",
                    advice="it renews itself while connected; see the agent's log",
                )
            )
    if not rows:
        lines.append(
            CheckLine(
                name="agents",
                state=FAILED,
                detail="all that had joined are revoked" if joined else "none has joined",
                advice="make a token with `holdfast agent token`, then enrol a proxy with it",
            )
        )
    return lines


def _reach(world: World) -> list[CheckLine]:
    lines = []
    proxies = world.proxies()
    repository_id = world.settings.get(names.REPOSITORY_ID)
    if proxies and not any(repository_id in proxy.repositories for proxy in proxies):
        lines.append(
            CheckLine(
                name="repository: proxies",
                state=FAILED,
                detail="no connected proxy reaches the repository",
                advice=f"holdfast-agent configure --repository {repository_id}=FOLDER",
            )
        )
    mapped = {datastore for proxy in proxies for datastore in proxy.datastores}
    for row in world.vcenters.table.all():
        try:
            stores = world.vcenters.inventory.surroundings(row.vcenter_id).datastores
        except HoldfastError:
            continue
        for store in stores:
            if store.kind.upper().startswith("NFS") and store.datastore_id not in mapped:
                lines.append(
                    CheckLine(
                        name=f"datastore {store.name}",
                        state=WARNING,
                        detail="no proxy has it mounted, so its disks go over the network",
                        advice=f"holdfast-agent configure --datastore {store.datastore_id}=FOLDER",
                    )
                )
            if not store.accessible:
                lines.append(
                    CheckLine(
                        name=f"datastore {store.name}",
                        state=WARNING,
                        detail="vSphere says that it is not accessible",
                        advice="look at the hosts' storage",
                    )
                )
    return lines


def _debts(world: World) -> list[CheckLine]:
    return [
        CheckLine(
            name="debt",
            state=FAILED,
            detail=f"{debt_text(entry)}, since {entry.created_at[:19]}, tried {entry.attempts} times:"
            f" {shortened(entry.last_error)}",
            advice="it is tried again by itself; no new backup of that VM starts before",
        )
        for entry in world.ledger.debts()
    ]


def _unprotected(world: World) -> list[CheckLine]:
    return [
        CheckLine(
            name=f"VM {known.vm.name}",
            state=WARNING,
            detail=f"{disk.label} is in no image backup: {disk.unprotected_reason}",
            advice="back its data up from inside the guest",
        )
        for known in world.vcenters.inventory.vms()
        for disk in known.vm.unprotected_disks
    ]
