"""`holdfast qualify VM`: which behaviours that backups stand on hold at this vSphere."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import click
from google.protobuf import json_format

from holdfast_common.errors import UsageError
from holdfast_common.wire import operator_pb2
from holdfast_controller.commands.entry import Entry, json_option, pass_entry
from holdfast_controller.commands.operator_client import operators
from holdfast_controller.commands.output import Output, note

BROKEN_STATUS: Final = 1
UNSEEN_STATUS: Final = 3


@click.command()
@click.argument("vm")
@click.option("--vcenter", default="", help="When several vCenters have a VM of this name.")
@click.option("--dry-run", is_flag=True, help="Show what would be done with the VM.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option(
    "--report",
    type=click.Path(dir_okay=False, path_type=Path),
    default=None,
    help="Write the report here too, as JSON; beside it, as FILE.txt, for people.",
)
@json_option
@pass_entry
@click.pass_context
def qualify(
    context: click.Context,
    entry: Entry,
    *,
    vm: str,
    vcenter: str,
    dry_run: bool,
    yes: bool,
    report: Path | None,
    output: Output,
) -> None:
    """Try everything that backups and restores need with a VM that nobody needs.

    Exits with 1 when a behaviour is broken, with 3 when one was not to be seen here.
    """
    request = operator_pb2.QualifyRequest(vm=vm, vcenter=vcenter, dry_run=True)
    with operators(entry.places) as client:
        for page in client.stream(client.stub.Qualify, request):
            for line in page.plan:
                (note if output.as_json else output.line)(line)
        if dry_run:
            return
        if not yes and not click.confirm(f"Do this with {vm}?", err=True):
            raise UsageError("nothing was done", advice="add --yes where nobody can be asked")
        request.dry_run = False
        found = operator_pb2.QualifyReport()
        for page in client.stream(client.stub.Qualify, request):
            if page.step:
                note(page.step)
            if page.HasField("report"):
                found = page.report
    text = "\n".join(report_lines(found))
    if report is not None:
        report.write_text(json_format.MessageToJson(found) + "\n", encoding="utf-8")
        report.with_name(f"{report.name}.txt").write_text(text + "\n", encoding="utf-8")
    if output.as_json:
        output.document("qualification", found)
    else:
        output.line(text)
    verdicts = {each.verdict for each in found.findings}
    broken = "broken" in verdicts or not verdicts
    context.exit(BROKEN_STATUS if broken else UNSEEN_STATUS if "not seen" in verdicts else 0)


def report_lines(report: operator_pb2.QualifyReport) -> list[str]:
    """The report for people."""
    where = f"{report.product} {report.version} build {report.build}"
    lines = [f"{report.vcenter}: {where}, tried with {report.vm}, {report.taken_at[:19]}"]
    lines += [f"host {each}" for each in report.hosts]
    lines += [f"datastore {each}" for each in report.datastores]
    for each in report.findings:
        detail = f" ({each.detail})" if each.detail else ""
        lines.append(f"{each.verdict:<9} {each.behaviour}{detail}")
    return lines
