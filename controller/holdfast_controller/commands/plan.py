"""`holdfast plan`: what the policies would do in the next days, and what of it does not fit."""

from __future__ import annotations

from typing import Final

import click

from holdfast_common.wire import operator_pb2
from holdfast_controller.commands.entry import Entry, json_option, pass_entry
from holdfast_controller.commands.operator_client import operators
from holdfast_controller.commands.output import Output, note

MISSED_STATUS: Final = 3  # something is skipped: as the exit status of a run that skipped something
MISSES: Final = frozenset({"stop", "unbegun", "left out", "nothing"})
UNCOVERED_SHOWN_MAX: Final = 20
_TEXTS: Final = {
    "due": "is due",
    "begin": "begins",
    "end": "ends",
    "stop": "does NOT fit: the window closes before it is done",
    "unbegun": "does NOT fit: the window closes before it begins",
    "left out": "is left out",
    "nothing": "backs up NOTHING",
}


@click.command()
@click.option("--days", type=float, default=1.0, show_default=True, help="How far to look ahead.")
@click.option(
    "--all", "show_all", is_flag=True, help="Each backup too, not only what does not fit."
)
@click.option(
    "--all-covered",
    is_flag=True,
    help="Exit with 3 also when a VM is in no policy; proxies may be.",
)
@json_option
@pass_entry
@click.pass_context
def plan(
    context: click.Context,
    entry: Entry,
    *,
    days: float,
    show_all: bool,
    all_covered: bool,
    output: Output,
) -> None:
    """What would run when and where, what would not fit, and which VMs no policy covers.

    The controller's own decisions on a clock that jumps; how long a backup takes is what the last ones took. Exits with 3
    when something does not fit.
    """
    summary = operator_pb2.PlanSummary()
    with operators(entry.places) as client:
        for page in client.stream(client.stub.PlanDays, operator_pb2.PlanRequest(days=days)):
            if output.as_json:
                output.document("plan", page)
            else:
                _show(page, output, show_all=show_all)
            if page.HasField("summary"):
                summary = page.summary
    if not output.as_json:
        _show_summary(summary, output)
    fails = summary.misses or (all_covered and summary.uncovered)
    context.exit(MISSED_STATUS if fails else 0)


def _show(page: operator_pb2.PlanPage, output: Output, *, show_all: bool) -> None:
    for each in page.decisions:
        if not (show_all or each.act in MISSES or each.act == "due"):
            continue
        subject = f"{each.policy}: {each.vm}" if each.vm else each.policy
        details = ", ".join(text for text in (each.level, each.agent, each.reason) if text)
        text = f"{each.at[:16].replace('T', ' ')}  {subject} {_TEXTS.get(each.act, each.act)}"
        output.line(f"{text} ({details})" if details else text)


def _show_summary(summary: operator_pb2.PlanSummary, output: Output) -> None:
    output.line(
        f"{summary.runs} runs, {summary.backups} backups of {summary.vms} VMs"
        f" by {summary.policies} policies; {summary.misses} do not fit or are left out"
    )
    for text in summary.told:
        output.line(text)
    if summary.guessed:
        note(f"how long is a guess for {summary.guessed} VMs: their backups were never timed")
    if summary.uncovered:
        shown = ", ".join(summary.uncovered[:UNCOVERED_SHOWN_MAX])
        more = len(summary.uncovered) - UNCOVERED_SHOWN_MAX
        rest = f" and {more} more" if more > 0 else ""
        output.line(f"in no policy: {shown}{rest}")
