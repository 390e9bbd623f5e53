"""A policy in the operator's editor: nothing is changed by a wrong text, and no text is lost."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Final

import click

from holdfast_common.errors import HoldfastError, UsageError
from holdfast_common.wire import operator_pb2
from holdfast_controller.commands.operator_client import OperatorClient
from holdfast_controller.commands.output import note
from holdfast_controller.commands.policy_file import read_text

_HINT: Final = """\
# The policy as it is. It is changed when the editor ends, all at once or, when something is wrong, not at all.
# Lines that begin with # say nothing; those below name fields that are not set.

"""


def edit_policy(
    client: OperatorClient, detail: operator_pb2.PolicyDetail, request: operator_pb2.PolicyText
) -> operator_pb2.PolicyChanges | None:
    """Let its text be edited until it can be taken or the operator gives up; None: it was left as it was.

    After a dry run the text stays, for `policy apply`. Raises: what is wrong with it; the advice says where the text is.
    """
    offered = _HINT + detail.template
    path = _new_file(detail.summary.name, offered)
    request.file = str(path)
    while True:
        try:
            _run_editor(path)
            request.text = read_text(path)
            if request.text == offered or not _says_something(request.text):
                path.unlink()
                return None
            changes = client.call(client.stub.ApplyPolicies, request)
        except HoldfastError as error:
            kept = f"nothing was changed; the text is kept in {path}"
            if not sys.stdin.isatty():
                advice = f"{error.advice}\n{kept}".strip()
                raise type(error)(error.message, advice=advice, **error.facts) from error
            note(error.line())
            note(f"{error.advice}\n{kept}".strip())
            click.confirm("edit it again?", default=True, abort=True, err=True)
        else:
            if request.dry_run:
                note(f"the text is kept in {path}")
            else:
                path.unlink()
            return changes


def _new_file(name: str, text: str) -> Path:
    handle, path = tempfile.mkstemp(prefix=f"holdfast-policy-{name}-", suffix=".toml")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
    return Path(path)


def _run_editor(path: Path) -> None:
    try:
        click.edit(filename=str(path))
    except click.ClickException as error:
        raise UsageError(
            error.format_message(),
            advice="say which editor with EDITOR, or change fields by options",
        ) from error


def _says_something(text: str) -> bool:
    return any(line.strip() and not line.lstrip().startswith("#") for line in text.splitlines())
