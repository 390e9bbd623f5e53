"""What `doctor` looks at in a vCenter: certificate, login, identity, clock, rights one by one, hosts, datastores."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Final

from holdfast_common.clock import parse_utc
from holdfast_common.errors import HoldfastError
from holdfast_common.units import size_text
from holdfast_controller.decide.level import denied_build, host_build_text
from holdfast_controller.decide.privileges import NEEDED_RIGHTS, NeededRight, RightOn
from holdfast_controller.runs.check_lines import FAILED, OK, WARNING, Check, CheckLine, named
from holdfast_controller.runs.world import World
from holdfast_controller.store.inventory import Surroundings
from holdfast_controller.store.vcenters import VcenterRow
from holdfast_controller.vsphere.account_rights import lacking
from holdfast_controller.vsphere.inventory import read_server
from holdfast_controller.vsphere.pinning import ServerCertificate, fetch_certificate
from holdfast_controller.vsphere.server_clock import server_time

VCENTER_CERTIFICATE_LEFT_MIN: Final = timedelta(days=30)
CLOCK_DIFFERENCE_SECONDS_MAX: Final = 120.0


def test_vcenter(world: World, row: VcenterRow) -> list[CheckLine]:
    """All of one vCenter. Never raises for what it checks; what needs a login is left out without one."""
    name = f"vCenter {row.name}"
    try:
        shown = fetch_certificate(row.host, row.port)
    except HoldfastError as error:
        return [
            CheckLine(
                check=Check.VCENTER_REACHED,
                name=name,
                state=FAILED,
                detail=str(error),
                advice="check its address, the network, and that it runs",
            )
        ]
    if shown.sha256 != row.certificate_sha256:
        return [
            CheckLine(
                check=Check.VCENTER_CERTIFICATE,
                name=f"{name}: certificate",
                state=FAILED,
                detail=f"it shows {shown.sha256}, pinned is {row.certificate_sha256}",
                advice="if it was renewed, add the vCenter again and look at the fingerprint",
            )
        ]
    lines = [_certificate(world, row, shown)]
    try:
        lines += _logged_in(world, row)
    except HoldfastError as error:
        world.vcenters.table.note_check(row.vcenter_id, error=str(error))
        lines.append(
            CheckLine(
                check=Check.VCENTER_LOGIN,
                name=f"{name}: login",
                state=FAILED,
                detail=error.line(),
                advice=error.advice or "check user and password: add the vCenter again",
            )
        )
        return lines
    world.vcenters.table.note_check(row.vcenter_id, error="")
    if any(line.check == Check.VCENTER_IDENTITY for line in lines):
        return lines
    try:
        world.vcenters.refresh(row.vcenter_id)
        around = world.vcenters.inventory.surroundings(row.vcenter_id)
    except HoldfastError as error:
        return [*lines, _unread(row, error)]
    lines += [*_tags(world, row), *_rights(world, row, around)]
    return [*lines, *_hosts(row, around), *_datastores(world, row, around)]


def _certificate(world: World, row: VcenterRow, shown: ServerCertificate) -> CheckLine:
    left = parse_utc(shown.not_after) - world.clock.now()
    name = f"vCenter {row.name}: certificate"
    if left < VCENTER_CERTIFICATE_LEFT_MIN:
        return CheckLine(
            check=Check.VCENTER_CERTIFICATE_END,
            name=name,
            state=WARNING,
            detail=f"the pinned one, which ends {shown.not_after[:19]}",
            advice="when it is renewed, add the vCenter again: until then nothing is backed up from it",
        )
    return CheckLine(check=Check.VCENTER_CERTIFICATE, name=name, state=OK, detail="the pinned one")


def _logged_in(world: World, row: VcenterRow) -> list[CheckLine]:
    """Raises: what logging in raises."""
    name = f"vCenter {row.name}"
    session = world.vcenters.session(row.vcenter_id)
    before = world.clock.now()
    server = read_server(session)
    seconds = abs((server_time(session) - before).total_seconds())
    lines = [
        CheckLine(
            check=Check.VCENTER_LOGIN,
            name=f"{name}: login",
            state=OK,
            detail=f"{server.product} {server.version}",
        )
    ]
    if server.instance_uuid != row.instance_uuid:
        lines.append(
            CheckLine(
                check=Check.VCENTER_IDENTITY,
                name=f"{name}: identity",
                state=FAILED,
                detail=f"its instance is {server.instance_uuid}, known is {row.instance_uuid}",
                advice="this is another vCenter: add it under a name of its own",
            )
        )
    late = seconds > CLOCK_DIFFERENCE_SECONDS_MAX
    lines.append(
        CheckLine(
            check=Check.VCENTER_CLOCK,
            name=f"{name}: clock",
            state=WARNING if late else OK,
            detail=f"{seconds:.0f} s apart",
            advice="set both clocks by NTP" if late else "",
        )
    )
    return lines


def _unread(row: VcenterRow, error: HoldfastError) -> CheckLine:
    return CheckLine(
        check=Check.VCENTER_INVENTORY,
        name=f"vCenter {row.name}: inventory",
        state=FAILED,
        detail=error.line(),
        advice=error.advice or "look at the vCenter's own health",
    )


def _tags(world: World, row: VcenterRow) -> list[CheckLine]:
    """A single host has none; of a vCenter they are read with its inventory."""
    name = f"vCenter {row.name}: tags"
    for source in world.vcenters.inventory.tags.sources(row.name):
        if source.known and not source.problem:
            detail = f"read at {source.taken_at[:19]}"
            return [CheckLine(check=Check.VCENTER_TAGS, name=name, state=OK, detail=detail)]
        if source.is_vcenter:
            advice = (
                "VMs cannot be selected by tag: let the account read (System.Read) tags, or wait"
            )
            return [
                CheckLine(
                    check=Check.VCENTER_TAGS,
                    name=name,
                    state=WARNING,
                    detail=source.reason,
                    advice=advice,
                )
            ]
    return []


def _rights(world: World, row: VcenterRow, around: Surroundings) -> Iterator[CheckLine]:
    """One line for each right that the account lacks somewhere, or one for all."""
    name = f"vCenter {row.name}: rights of {row.user_name}"
    objects = _objects(world, row, around)
    session = world.vcenters.session(row.vcenter_id)
    found: dict[str, list[str]] = {}
    try:
        for on in RightOn:
            wanted = [right.privilege for right in NEEDED_RIGHTS if right.on is on]
            found |= lacking(session, on, list(objects[on]), wanted)
    except HoldfastError as error:
        yield CheckLine(
            check=Check.RIGHT,
            name=name,
            state=WARNING,
            detail=f"vSphere does not tell them: {error.line()}",
            advice=error.advice or "compare its role with docs/doctor.md",
        )
        return
    if not found:
        detail = f"all {len(NEEDED_RIGHTS)} that backups and restores need"
        yield CheckLine(check=Check.RIGHT, name=name, state=OK, detail=detail)
    for right in NEEDED_RIGHTS:
        if right.privilege in found:
            known = objects[right.on]
            yield _lacks(name, right, [known[each] for each in found[right.privilege]], len(known))


def _objects(world: World, row: VcenterRow, around: Surroundings) -> dict[RightOn, dict[str, str]]:
    """Names by moref of all on which rights are needed."""
    vms = world.vcenters.inventory.vms(row.vcenter_id)
    vm_folders = {known.vm.folder_moref for known in vms} | {
        place.vm_folder_moref for place in around.places
    }
    return {
        RightOn.VM: {known.vm.moref: known.vm.name for known in vms},
        RightOn.DATASTORE: {store.moref: store.name for store in around.datastores},
        RightOn.POOL: {
            place.moref: place.path for place in around.places if place.kind == "ResourcePool"
        },
        RightOn.FOLDER: {
            place.moref: place.path
            for place in around.places
            if place.kind == "Folder" and place.moref in vm_folders
        },
    }


def _lacks(name: str, right: NeededRight, where: list[str], count: int) -> CheckLine:
    on = f"every {right.on}" if len(where) == count else f"{right.on} {named(where)}"
    return CheckLine(
        check=f"{Check.RIGHT} {right.privilege}",
        name=name,
        state=FAILED if right.backups else WARNING,
        detail=f"lacks {right.privilege} on {on}: {right.purpose}",
        advice=f"add {right.privilege} to its role, for these objects and what is below them",
    )


def _hosts(row: VcenterRow, around: Surroundings) -> Iterator[CheckLine]:
    name = f"vCenter {row.name}: host"
    for host in around.hosts:
        if host.connection_state != "connected":
            yield CheckLine(
                check=Check.HOST_CONNECTED,
                name=f"{name} {host.name}",
                state=FAILED,
                detail=f"vSphere says that it is {host.connection_state or 'not there'}",
                advice="its VMs cannot be backed up until it is connected again",
            )
        if denied_build(host_build_text(host)):
            yield CheckLine(
                check=Check.HOST_BUILD,
                name=f"{name} {host.name}",
                state=WARNING,
                detail=f"{host.version} build {host.build} is known to lose changed blocks: every backup reads"
                " everything",
                advice="update the host",
            )


def _datastores(world: World, row: VcenterRow, around: Surroundings) -> Iterator[CheckLine]:
    for store in around.datastores:
        name = f"datastore {store.name}"
        if not store.accessible:
            yield CheckLine(
                check=Check.DATASTORE_ACCESSIBLE,
                name=name,
                state=FAILED,
                detail=f"vSphere ({row.name}) says that it is not accessible",
                advice="look at the hosts' storage",
            )
            continue
        wanted = world.configuration.datastores.before_snapshot_bytes(store.capacity_bytes)
        if store.capacity_bytes and store.free_bytes < wanted:
            yield CheckLine(
                check=Check.DATASTORE_ROOM,
                name=name,
                state=FAILED,
                detail=f"{size_text(store.free_bytes)} of {size_text(store.capacity_bytes)} free,"
                f" {size_text(wanted)} is the floor: no snapshot is made there",
                advice="make room, or change the floor ([datastores] in controller.toml)",
            )
