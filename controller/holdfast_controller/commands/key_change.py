"""How a change of the repository's keys is asked for and shown."""

from __future__ import annotations

import click

from holdfast_common.wire import operator_pb2
from holdfast_controller.commands.output import Output, note, plain


def ask(planned: operator_pb2.KeyChange, question: str, *, yes: bool) -> None:
    """Show the plan and ask, unless ``yes``. Raises: click.Abort."""
    if not yes:
        for line in planned.plan:
            note(line)
        click.confirm(question, abort=True, err=True)


def show_change(
    changed: operator_pb2.KeyChange,
    output: Output,
    *,
    done: str,
    more: dict[str, object] | None = None,
) -> None:
    """What was done, or would be. ``more``: further facts of the document."""
    if output.as_json:
        output.document("key_change", {**plain(changed), **(more or {})})
        return
    for line in changed.plan:
        output.line(line)
    if changed.done:
        output.line(f"{done}: key generation {changed.generation}, epoch {changed.epoch}")
    else:
        output.line("nothing was changed: this was a dry run")
