"""`holdfast status`: one screen; ``--nagios`` for monitoring."""

from __future__ import annotations

from datetime import UTC, datetime

import click

from holdfast_common.clock import SystemClock, parse_utc
from holdfast_common.wire import operator_pb2
from holdfast_controller.commands.entry import Entry, json_option, pass_entry
from holdfast_controller.commands.operator_client import operators
from holdfast_controller.commands.output import Output

OLD_AFTER_HOURS = 26  # a day and a little: a nightly backup that was missed shows


@click.command()
@click.option("--nagios", is_flag=True, help="One line, exit code 0 to 3.")
@json_option
@pass_entry
@click.pass_context
def status(context: click.Context, entry: Entry, *, nagios: bool, output: Output) -> None:
    """What is protected and what is not, what runs, and every debt."""
    with operators(entry.places) as client:
        found = client.call(client.stub.GetStatus, operator_pb2.Empty())
    if output.as_json:
        output.document("status", found)
        return
    if nagios:
        text, code = _nagios(found, SystemClock().now())
        output.line(text)
        context.exit(code)
    _show(found, SystemClock().now(), output)


def _age(text: str, now: datetime) -> float | None:
    return None if not text else (now - parse_utc(text).astimezone(UTC)).total_seconds() / 3600


def _nagios(found: operator_pb2.Status, now: datetime) -> tuple[str, int]:
    ages = [_age(vm.last_good_at, now) for vm in found.vms]
    never = sum(1 for age in ages if age is None)
    old = sum(1 for age in ages if age is not None and age > OLD_AFTER_HOURS)
    text = (
        f"{len(ages)} VMs, {never} without a backup, {old} older than {OLD_AFTER_HOURS} h,"
        f" {len(found.debts)} debts"
    )
    if found.repository_problem or found.debts or (ages and never == len(ages)):
        return f"HOLDFAST CRITICAL: {text} {found.repository_problem}".rstrip(), 2
    if never or old or found.warnings:
        return f"HOLDFAST WARNING: {text}", 1
    if not ages:
        return "HOLDFAST UNKNOWN: the inventory is empty", 3
    return f"HOLDFAST OK: {text}", 0


def _show(found: operator_pb2.Status, now: datetime, output: Output) -> None:
    for warning in found.warnings:
        output.line(f"WARNING  {warning}")
    problem = found.repository_problem or "fine"
    output.line(f"repository {found.repository_id}: {problem}")
    connected = sum(1 for agent in found.agents if agent.state == "connected")
    output.line(f"agents: {connected} of {len(found.agents)} connected")
    for debt in found.debts:
        output.line(
            f"DEBT     {debt.kind} {debt.target} since {debt.since[:19]}: {debt.last_error}"
        )
    for job in found.running:
        percent = 100 * job.done_bytes // job.total_bytes if job.total_bytes else 0
        output.line(f"running  {job.vm}: {job.kind} {job.state} {percent} %  {job.job_id}")
    rows = []
    for vm in found.vms:
        age = _age(vm.last_good_at, now)
        rows.append(
            [
                vm.name,
                vm.vcenter,
                "never" if age is None else f"{age:.1f} h",
                vm.last_result,
                "; ".join(vm.unprotected),
            ]
        )
    output.table(["VM", "VCENTER", "LAST GOOD", "LAST RESULT", "NOT PROTECTED"], rows)
