"""How changes of the repository are planned, asked for and shown."""

from __future__ import annotations

import click

from holdfast_common.errors import Refused
from holdfast_common.wire import operator_pb2
from holdfast_controller.commands.entry import Entry
from holdfast_controller.commands.operator_client import operators
from holdfast_controller.commands.output import Output, note

give_up_option = click.option(
    "--give-up",
    is_flag=True,
    help="Also points that are named and whose manifest is damaged, which no copy can repair: POINT may be the name"
    " of its object. What only they need is lost.",
)


def forget_points(
    entry: Entry,
    request: operator_pb2.ForgetRequest,
    output: Output,
    *,
    dry_run: bool,
    yes: bool,
) -> None:
    """Plan, ask, do exactly what was planned. Raises: Refused (all that is named stays), click.Abort."""
    with operators(entry.places) as client:
        request.dry_run = True
        planned = client.call(client.stub.ForgetPoints, request)
        if not dry_run and not planned.names:
            _check_nothing_was_named(request, planned)
            planned.done = True  # there was nothing to do
        elif not dry_run:
            if not yes:
                for line in planned.plan:
                    note(line)
                for each in planned.decisions:
                    if each.kept:
                        note(f"keep {each.point_id} of {each.vm}: {'; '.join(each.reasons)}")
                question = f"forget {len(planned.names)} restore points for ever?"
                if planned.given_up:
                    question += f" {len(planned.given_up)} of them are given up, unread"
                click.confirm(question, abort=True, err=True)
            planned = client.call(client.stub.ForgetPoints, _exactly(request, planned))
        show_repository_change(planned, output, "forgotten")


def _exactly(
    request: operator_pb2.ForgetRequest, planned: operator_pb2.RepositoryChange
) -> operator_pb2.ForgetRequest:
    """What was agreed to: the rule is asked again, and takes of that what it still takes."""
    dropped = {each.point_id for each in planned.decisions if not each.kept}
    exact = operator_pb2.ForgetRequest()
    if dropped:
        exact.CopyFrom(request)
        exact.dry_run = False
        exact.only.extend(sorted(dropped))
        del exact.point_ids[:], exact.give_up[:]
    exact.point_ids.extend(name for name in planned.names if name not in dropped)
    exact.give_up.extend(planned.given_up)
    return exact


def _check_nothing_was_named(
    request: operator_pb2.ForgetRequest, planned: operator_pb2.RepositoryChange
) -> None:
    if request.point_ids:
        raise Refused(
            "nothing was forgotten: " + "; ".join(planned.plan),
            advice="`holdfast point unhold POINT` lets go of one that is held",
        )


def show_repository_change(
    changed: operator_pb2.RepositoryChange, output: Output, document: str
) -> None:
    """What was done, or would be."""
    if output.as_json:
        output.document(document, changed)
        return
    for line in changed.plan:
        output.line(line)
    if changed.decisions:
        output.table(
            ("VM", "TAKEN", "POINT", "", "WHY"),
            (
                (
                    each.vm,
                    each.created_at[:19],
                    each.point_id,
                    "keep" if each.kept else "forget",
                    "; ".join(each.reasons),
                )
                for each in changed.decisions
            ),
        )
    if not changed.done:
        output.line("nothing was changed: this was a dry run")
