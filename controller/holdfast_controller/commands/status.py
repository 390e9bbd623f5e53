"""`holdfast status`: one screen; ``--nagios`` for monitoring."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

import click

from holdfast_common.clock import SystemClock, parse_utc
from holdfast_common.errors import (
    ControllerUnreachable,
    HoldfastError,
    TimedOut,
    UsageError,
)
from holdfast_common.wire import operator_pb2
from holdfast_controller.commands.entry import Entry, json_option, pass_entry
from holdfast_controller.commands.keeping_shown import keeping_lines
from holdfast_controller.commands.operator_client import operators
from holdfast_controller.commands.output import Output
from holdfast_controller.commands.policy_shown import names_text
from holdfast_controller.decide.confidence import confidence_number
from holdfast_controller.decide.policy_checks import duration_text
from holdfast_controller.decide.tag_knowledge import age_text
from holdfast_controller.runs.debts import shortened

WARNING, CRITICAL, UNKNOWN = 1, 2, 3  # as monitoring plugins end
NAGIOS_SECONDS_MAX = 8.0  # most give a plugin ten
OLD_AFTER_HOURS = 26  # a day and a little: a nightly backup that was missed shows
LATE_SHOWN_MAX = 20


@click.command()
@click.option(
    "--nagios",
    is_flag=True,
    help="For monitoring: one line, exit code 0 (good) to 3, whatever happens.",
)
@json_option
@pass_entry
@click.pass_context
def status(context: click.Context, entry: Entry, *, nagios: bool, output: Output) -> None:
    """What is protected and what is not, what runs, and every debt."""
    if nagios:
        if output.as_json:
            raise UsageError("give one of --nagios and --json")
        text, code = _asked_for_nagios(entry)
        output.line(_one_line(text))
        context.exit(code)
    with operators(entry.places) as client:
        found = client.call(client.stub.GetStatus, operator_pb2.Empty())
    if output.as_json:
        output.document("status", found)
        return
    _show(found, SystemClock().now(), output)


def _asked_for_nagios(entry: Entry) -> tuple[str, int]:
    """Whatever happens is one line and a code: monitoring reads nothing else."""
    try:
        with operators(entry.places) as client:
            found = client.call(
                client.stub.GetStatus, operator_pb2.Empty(), timeout_seconds=NAGIOS_SECONDS_MAX
            )
    except (ControllerUnreachable, TimedOut) as error:
        return f"HOLDFAST CRITICAL: {error}", CRITICAL
    except HoldfastError as error:
        return f"HOLDFAST UNKNOWN: {error}", UNKNOWN
    return _nagios(found, SystemClock().now())


def _one_line(text: str) -> str:
    """Monitoring takes a bar for the start of its figures."""
    return " ".join(text.replace("|", "/").split())


def _age(text: str, now: datetime) -> float | None:
    return None if not text else (now - parse_utc(text).astimezone(UTC)).total_seconds() / 3600


def inventory_age_text(vcenter: operator_pb2.Vcenter, now: datetime) -> str:
    """How long ago the VMs of a vCenter were looked at, and what is wrong with their tags."""
    age = _age(vcenter.refreshed_at, now)
    text = "never read" if age is None else f"read {max(0.0, age) * 60:.0f} minutes ago"
    if not vcenter.tags_problem:
        return text
    if not vcenter.tags_read_at:
        return f"{text}; its tags are not known: {vcenter.tags_problem}"
    old = age_text(vcenter.tags_read_at, now)
    return f"{text}; its tags are {old} old, they could not be read again: {vcenter.tags_problem}"


def _nagios(found: operator_pb2.Status, now: datetime) -> tuple[str, int]:
    ages = [_age(vm.last_good_at, now) for vm in found.vms]
    never = sum(1 for age in ages if age is None)
    failed = sum(1 for vm in found.vms if vm.last_result == "failed")
    old = sum(
        1
        for vm, age in zip(found.vms, ages, strict=True)
        if age is not None and age > OLD_AFTER_HOURS and not vm.promised_seconds
    )
    used = [agent for agent in found.agents if agent.state != "revoked"]
    away = sum(1 for agent in used if agent.state != "connected")
    text = (
        f"{len(ages)} VMs, {never} without a good backup, {found.late} later than promised,"
        f" {old} older than {OLD_AFTER_HOURS} h without a promise, {found.uncovered} in no policy,"
        f" {failed} failed last, {len(found.debts)} debts, {len(used) - away} of {len(used)} agents connected"
    )
    problems = [found.repository_problem] if found.repository_problem else []
    if away == len(used):
        problems.append("no agent is connected")
    if problems or found.debts or (ages and never == len(ages)):
        return f"HOLDFAST CRITICAL: {'; '.join([text, *problems])}", CRITICAL
    if never or old or found.late or failed or away or found.warnings:
        return f"HOLDFAST WARNING: {'; '.join([text, *found.warnings])}", WARNING
    if not ages:
        return "HOLDFAST UNKNOWN: the inventory is empty", UNKNOWN
    return f"HOLDFAST OK: {text}", 0


def _show(found: operator_pb2.Status, now: datetime, output: Output) -> None:
    for warning in found.warnings:
        output.line(f"WARNING  {warning}")
    problem = found.repository_problem or "fine"
    output.line(f"repository {found.repository_id}: {problem}")
    used = [agent for agent in found.agents if agent.state != "revoked"]
    connected = sum(1 for agent in used if agent.state == "connected")
    output.line(f"agents: {connected} of {len(used)} connected")
    for vcenter in found.vcenters:
        output.line(f"inventory of {vcenter.name}: {inventory_age_text(vcenter, now)}")
    for debt in found.debts:
        output.line(
            f"DEBT     {debt.target} ({debt.vcenter}), since {debt.since[:19]}:"
            f" {shortened(debt.last_error)}"
        )
    for job in found.running:
        percent = 100 * job.done_bytes // job.total_bytes if job.total_bytes else 0
        output.line(f"running  {job.vm}: {job.kind} {job.state} {percent} %  {job.job_id}")
    for line in (*keeping_lines(found.keeping, now), *_policy_lines(found, now)):
        output.line(line)
    rows = [
        [
            vm.name,
            vm.vcenter,
            _age_text(vm.last_good_at, now),
            _confidence_text(vm),
            _age_text(vm.read_back_at, now),
            duration_text(vm.promised_seconds) if vm.promised_seconds else "",
            ", ".join(vm.policies) or "NONE",
            vm.last_result,
            "; ".join(vm.unprotected),
        ]
        for vm in found.vms
    ]
    output.table(
        [
            "VM",
            "VCENTER",
            "LAST GOOD",
            "CONFIDENCE",
            "READ BACK",
            "PROMISED",
            "POLICIES",
            "LAST RESULT",
            "NOT PROTECTED",
        ],
        rows,
    )


def _policy_lines(found: operator_pb2.Status, now: datetime) -> Iterator[str]:
    """Whose promise is broken, the latest first, and which VMs no policy covers: some by name, --json has all."""
    late = [vm for vm in found.vms if vm.late_seconds]
    for vm in late[:LATE_SHOWN_MAX]:
        yield (
            f"LATE     {vm.name}: last good {_age_text(vm.last_good_at, now)},"
            f" {duration_text(vm.late_seconds)} later than {vm.broken_by} promises{_why_late(vm)}"
        )
    more = found.late - min(len(late), LATE_SHOWN_MAX)
    if more > 0:
        yield f"LATE     and {more} more"
    if found.uncovered:
        names = [vm.name for vm in found.vms if not vm.policies]
        told = names_text(names, count=found.uncovered)
        yield f"in no policy: {found.uncovered} VMs: {told}"


def _why_late(vm: operator_pb2.VmStatus) -> str:
    """Where to look: a VM that is partial every time has new points, and none of them counts as good."""
    if not vm.last_result and not vm.last_good_at:
        return "; it was never backed up"
    if vm.last_result in ("", "done"):
        return ""
    return f"; its last backup is {vm.last_result}: see `holdfast why {vm.name}`"


def _confidence_text(vm: operator_pb2.VmStatus) -> str:
    """Of its last good point."""
    if not vm.last_good_at:
        return ""
    return confidence_number(vm.confidence if vm.HasField("confidence") else None)


def _age_text(text: str, now: datetime) -> str:
    age = _age(text, now)
    return "never" if age is None else f"{age:.1f} h"
