"""Every precondition, looked at one by one, each with what to do about it."""

from __future__ import annotations

import shutil
from typing import Final

from holdfast_common.errors import HoldfastError, WrongKey
from holdfast_common.units import GIB, size_text
from holdfast_controller.notification_urls import notification_urls
from holdfast_controller.runs.check_lines import FAILED, OK, WARNING, Check, CheckLine
from holdfast_controller.runs.debts import debt_text, shortened
from holdfast_controller.runs.doctor_proxies import agent_lines, reach_lines
from holdfast_controller.runs.doctor_vcenters import test_vcenter
from holdfast_controller.runs.doctor_vms import own_vm_lines, vm_lines
from holdfast_controller.runs.key_keeper import TAKEN_OVER_ADVICE
from holdfast_controller.runs.notifier import sending_problem
from holdfast_controller.runs.recovery_proof import challenge_from_text
from holdfast_controller.runs.repository_verdict import repository_verdict
from holdfast_controller.runs.self_backup import copy_verdict
from holdfast_controller.runs.world import World
from holdfast_controller.store import settings as names

REPOSITORY_FREE_BYTES_MIN: Final = 10 * GIB


def examine(world: World) -> list[CheckLine]:
    """All checks. Never raises for what it checks."""
    lines = [*_repository(world), _data(world), _recovery_sheet(world), _own_copy(world)]
    lines.append(_audit(world))
    vcenters = world.vcenters.table.all()
    if not vcenters:
        lines.append(
            CheckLine(
                check=Check.VCENTERS,
                name="vCenters",
                state=WARNING,
                detail="none is known",
                advice="add one with `holdfast vcenter add`",
            )
        )
    for row in vcenters:
        lines.extend(test_vcenter(world, row))
    lines.extend(agent_lines(world))
    lines.extend(reach_lines(world))
    lines.extend(_debts(world))
    lines.extend(own_vm_lines(world))
    lines.extend(vm_lines(world))
    lines.append(notifications_line(world))
    return lines


def notifications_line(world: World) -> CheckLine:
    """Whether anybody is told, and whether it arrives as far as we can see."""
    name, settings = "notifications", world.configuration.notifications
    try:
        urls = notification_urls(settings)
    except HoldfastError as error:
        return CheckLine(
            check=Check.NOTIFICATIONS,
            name=name,
            state=FAILED,
            detail=str(error),
            advice=error.advice or "look at [notifications] in controller.toml",
        )
    if not urls:
        return CheckLine(
            check=Check.NOTIFICATIONS,
            name=name,
            state=OK,
            detail="nobody is told anything: none are set up",
        )
    problem = sending_problem(world)
    return CheckLine(
        check=Check.NOTIFICATIONS,
        name=name,
        state=WARNING if problem else OK,
        detail=problem or f"addresses: {len(urls)}",
        advice="send one now with `holdfast notify test`" if problem else "",
    )


def _repository(world: World) -> list[CheckLine]:
    name = "repository"
    try:
        world.keeper.keys()
    except WrongKey as error:
        return [_failed(Check.REPOSITORY_KEY, "repository: key", error)]
    except HoldfastError as error:
        return [_failed(Check.REPOSITORY, name, error)]
    folder = world.keeper.folder
    lines = [
        CheckLine(
            check=Check.REPOSITORY,
            name=name,
            state=OK,
            detail=f"{world.keeper.repository_id} in {folder}, its key opens it",
        )
    ]
    try:
        world.keeper.prove_key_file()
    except HoldfastError as error:
        advice = (
            f"put the right file back at {world.keeper.key_file()} while the controller still runs"
        )
        lines.append(_failed(Check.REPOSITORY_KEY, "repository: key", error, advice=advice))
    return [*lines, _space(world)]


def _failed(check: Check, name: str, error: HoldfastError, *, advice: str = "") -> CheckLine:
    return CheckLine(
        check=check, name=name, state=FAILED, detail=error.line(), advice=error.advice or advice
    )


def _space(world: World) -> CheckLine:
    space = shutil.disk_usage(world.keeper.folder)
    settings = world.configuration.notifications
    wanted = max(
        int(settings.repository_free_share_min * space.total), settings.repository_free_bytes_min
    )
    low = space.free < wanted
    return CheckLine(
        check=Check.REPOSITORY_SPACE,
        name="repository: free space",
        state=WARNING if low else OK,
        detail=f"{size_text(space.free)} free"
        + (f", {size_text(wanted)} is the floor" if low else ""),
        advice="give it more room before it is full" if low else "",
    )


def _data(world: World) -> CheckLine:
    name = "repository: data"
    verdict = repository_verdict(world)
    if verdict.damage:
        return CheckLine(
            check=Check.REPOSITORY_DATA,
            name=name,
            state=FAILED,
            detail=verdict.damage,
            advice="see `holdfast job show` for what is lost; restore from other points",
        )
    if verdict.doubt:
        return CheckLine(
            check=Check.REPOSITORY_DATA,
            name=name,
            state=WARNING,
            detail=verdict.doubt,
            advice="run `holdfast check`",
        )
    never = "not checked yet: `holdfast check` does it"
    detail = f"whole at the last check ({verdict.checked})" if verdict.checked else never
    return CheckLine(check=Check.REPOSITORY_DATA, name=name, state=OK, detail=detail)


def _recovery_sheet(world: World) -> CheckLine:
    if world.settings.get(names.SHEET_CONFIRMED_AT):
        return CheckLine(
            check=Check.RECOVERY_SHEET, name="recovery sheet", state=OK, detail="confirmed"
        )
    if not world.settings.get(names.REPOSITORY_ID):
        return CheckLine(
            check=Check.RECOVERY_SHEET,
            name="recovery sheet",
            state=OK,
            detail="none yet: it comes with the repository",
        )
    challenge = challenge_from_text(world.settings.get(names.SHEET_CHALLENGE))
    wanted = " and ".join(str(number) for number in challenge.numbers)
    return CheckLine(
        check=Check.RECOVERY_SHEET,
        name="recovery sheet",
        state=FAILED,
        detail="never confirmed; no backup will start",
        advice=f"type its groups {wanted} back with `holdfast key recovery`",
    )


def _own_copy(world: World) -> CheckLine:
    name = "copy of the controller"
    taken_over = world.settings.get(names.TAKEN_OVER)
    if taken_over:
        return CheckLine(
            check=Check.OWN_COPY,
            name=name,
            state=FAILED,
            detail=taken_over,
            advice=TAKEN_OVER_ADVICE,
        )
    if not world.keeper.has_repository:
        detail = "none yet: it is made as soon as there is a repository"
        return CheckLine(check=Check.OWN_COPY, name=name, state=OK, detail=detail)
    verdict = copy_verdict(world)
    advice = "look at the controller's log, and at the room in the repository and in its own folder"
    if verdict.problem:
        return CheckLine(
            check=Check.OWN_COPY, name=name, state=WARNING, detail=verdict.problem, advice=advice
        )
    if not verdict.made_at:
        return CheckLine(
            check=Check.OWN_COPY,
            name=name,
            state=WARNING,
            detail="there is none yet: a lost controller could not be brought back",
            advice=f"it is made within a minute of the controller's start; else {advice}",
        )
    detail = f"made {verdict.made_at[:19]}, in the repository, for its recipients alone"
    return CheckLine(check=Check.OWN_COPY, name=name, state=OK, detail=detail)


def _audit(world: World) -> CheckLine:
    broken = world.audit.first_broken()
    if broken is None:
        return CheckLine(check=Check.AUDIT_TRAIL, name="audit trail", state=OK, detail="unbroken")
    return CheckLine(
        check=Check.AUDIT_TRAIL,
        name="audit trail",
        state=FAILED,
        detail=f"entry {broken} is not what was written",
        advice="somebody changed the controller's database: compare it with a backup",
    )


def _debts(world: World) -> list[CheckLine]:
    return [
        CheckLine(
            check=Check.DEBT,
            name="debt",
            state=FAILED,
            detail=f"{debt_text(entry)}, since {entry.created_at[:19]}, tried {entry.attempts} times:"
            f" {shortened(entry.last_error)}",
            advice="it is tried again by itself; no new backup of that VM starts before",
        )
        for entry in world.ledger.debts()
    ]
