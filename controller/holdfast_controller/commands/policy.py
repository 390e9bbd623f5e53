"""`holdfast policy create|list|show|edit|delete|apply|run`."""

from __future__ import annotations

import getpass
from pathlib import Path

import click

from holdfast_common.wire import operator_pb2
from holdfast_controller.commands.backup import show_plan, show_started
from holdfast_controller.commands.entry import Entry, json_option, pass_entry
from holdfast_controller.commands.following import follow
from holdfast_controller.commands.operator_client import operators
from holdfast_controller.commands.output import Output, note
from holdfast_controller.commands.policy_editor import edit_policy
from holdfast_controller.commands.policy_file import read_text
from holdfast_controller.commands.policy_options import allow_option, policy_options, with_given
from holdfast_controller.commands.policy_shown import (
    dropped_text,
    names_text,
    show_changes,
    show_list,
    show_policy,
)
from holdfast_controller.decide.level import LEVELS
from holdfast_controller.decide.policy import Policy
from holdfast_controller.decide.policy_text import policies_text, read_policies
from holdfast_controller.decide.policy_values import NEEDED, policy_of_values, policy_values

_dry_run_option = click.option("--dry-run", is_flag=True, help="Say what would be changed.")


@click.group()
def policy() -> None:
    """Which VMs are backed up, when, how, and what is kept."""


@policy.command()
@click.argument("name")
@policy_options(required=tuple(NEEDED - {"name"}))
@allow_option
@_dry_run_option
@json_option
@pass_entry
def create(
    entry: Entry,
    *,
    name: str,
    values: dict[str, object],
    allow: tuple[str, ...],
    dry_run: bool,
    output: Output,
) -> None:
    """A new policy."""
    made = policy_of_values(with_given({"name": name}, values))
    request = operator_pb2.PolicyText(
        text=policies_text([made]), only_new=True, allow=allow, dry_run=dry_run, user=_user()
    )
    with operators(entry.places) as client:
        show_changes(client.call(client.stub.ApplyPolicies, request), output)


@policy.command("list")
@json_option
@pass_entry
def list_policies(entry: Entry, *, output: Output) -> None:
    """All policies: when each is due, how many VMs it selects, what it promises."""
    with operators(entry.places) as client:
        show_list(client.call(client.stub.ListPolicies, operator_pb2.Empty()), output)


@policy.command()
@click.argument("name")
@click.option("--toml", is_flag=True, help="Only its text, as `apply` reads it.")
@json_option
@pass_entry
def show(entry: Entry, *, name: str, toml: bool, output: Output) -> None:
    """One policy: when it is due, when its window opens, which VMs it selects now and what of them it leaves out."""
    with operators(entry.places) as client:
        detail = client.call(client.stub.ShowPolicy, operator_pb2.PolicyName(name=name))
    if toml and not output.as_json:
        click.echo(detail.text, nl=False)
        return
    show_policy(detail, output)


@policy.command()
@click.argument("name")
@click.option("--rename", default="", metavar="NAME", help="Another name for it.")
@policy_options()
@allow_option
@_dry_run_option
@json_option
@pass_entry
def edit(
    entry: Entry,
    *,
    name: str,
    rename: str,
    values: dict[str, object],
    allow: tuple[str, ...],
    dry_run: bool,
    output: Output,
) -> None:
    """Change fields by options; without any, the whole policy in the editor that EDITOR names.

    A text of nothing ('') takes a field's value away; --exclude '' takes all of them away.
    """
    with operators(entry.places) as client:
        detail = client.call(client.stub.ShowPolicy, operator_pb2.PolicyName(name=name))
        request = operator_pb2.PolicyText(
            policy_id=detail.summary.policy_id,
            revision=detail.summary.revision,
            allow=allow,
            dry_run=dry_run,
            user=_user(),
        )
        if rename:
            values["name"] = rename
        if not values:
            changes = edit_policy(client, detail, request)
            if changes is None:
                note("nothing was changed")
                changes = operator_pb2.PolicyChanges(done=True)
        else:
            request.text = policies_text([_changed(detail.text, values)])
            changes = client.call(client.stub.ApplyPolicies, request)
    show_changes(changes, output)


@policy.command()
@click.argument("name")
@_dry_run_option
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
@pass_entry
def delete(entry: Entry, *, name: str, dry_run: bool, yes: bool, output: Output) -> None:
    """Take a policy away. Restore points stay; VMs that only it selects are no longer backed up."""
    request = operator_pb2.PolicyDeletion(name=name, dry_run=True, user=_user())
    with operators(entry.places) as client:
        changes = client.call(client.stub.DeletePolicy, request)
        if not dry_run:
            if not yes:
                _confirm(name, changes)
            request.dry_run, request.revision = False, changes.revision
            changes = client.call(client.stub.DeletePolicy, request)
    show_changes(changes, output)


@policy.command()
@click.argument("file", type=click.Path(path_type=Path, allow_dash=True))
@allow_option
@_dry_run_option
@json_option
@pass_entry
def apply(
    entry: Entry, *, file: Path, allow: tuple[str, ...], dry_run: bool, output: Output
) -> None:
    """Make policies as a TOML file says, `-` for standard input: all of them, or none when something is wrong.

    Policies that the file does not name stay as they are.
    """
    request = operator_pb2.PolicyText(
        text=read_text(file), file=str(file), allow=allow, dry_run=dry_run, user=_user()
    )
    with operators(entry.places) as client:
        show_changes(client.call(client.stub.ApplyPolicies, request), output)


@policy.command()
@click.argument("name")
@click.option(
    "--level",
    type=click.Choice(LEVELS),
    default=None,
    help="Of all its VMs; as the policy's rule says by default.",
)
@click.option("--wait/--detach", default=True, help="Wait for the end, or return at once.")
@click.option("--dry-run", is_flag=True, help="Show what would be done, and why.")
@json_option
@pass_entry
@click.pass_context
def run(
    context: click.Context,
    entry: Entry,
    *,
    name: str,
    level: str | None,
    wait: bool,
    dry_run: bool,
    output: Output,
) -> None:
    """Back up what a policy selects now, as it says, without waiting for its calendar.

    While its window is open the run stops when that closes; a window that is shut is ignored. The next due moment is
    begun all the same.
    """
    request = operator_pb2.PolicyRun(name=name, level=level or "", dry_run=dry_run)
    with operators(entry.places) as client:
        started = client.call(client.stub.RunPolicy, request)
        if dry_run:
            show_plan(started, output)
            return
        for text in started.told:
            note(text)
        if wait:
            context.exit(follow(client, started.run_id, output))
        show_started(started, output)


def _changed(text: str, given: dict[str, object]) -> Policy:
    """The policy of a text, with what was given."""
    (written,) = read_policies(text)
    values = policy_values(written.policy)
    if values["retention"]["time_zone"] == written.policy.time_zone:
        del values["retention"]["time_zone"]  # it goes with the policy's
    return policy_of_values(with_given(values, given))


def _confirm(name: str, changes: operator_pb2.PolicyChanges) -> None:
    if changes.uncovered:
        count = len(changes.uncovered)
        note(f"no policy covers then: {count} VMs: {names_text(changes.uncovered)}")
    if changes.HasField("dropped"):
        note(dropped_text(changes.dropped))
    click.confirm(f"delete the policy {name}? Its restore points stay", abort=True, err=True)


def _user() -> str:
    """Who runs this program, as far as the operating system knows a name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return ""
