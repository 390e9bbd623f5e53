"""`holdfast`: parse, call, print. Errors go to stderr as ``code: message (facts)`` and what to do next."""

from __future__ import annotations

import json
import logging
import sys
import traceback
from importlib.metadata import version as package_version

import click

from holdfast_common.arguments import check_text
from holdfast_common.errors import HoldfastError, Interrupted, UsageError
from holdfast_common.job_result import ErrorReport
from holdfast_common.places import HOME_VARIABLE, find_places
from holdfast_common.repository.hang_watch import leave
from holdfast_controller.commands.entry import Entry
from holdfast_controller.commands.lazy_group import LazyGroup
from holdfast_controller.commands.output import note

INTERRUPTED_STATUS = 130


@click.group(
    cls=LazyGroup,
    commands_folder="holdfast_controller.commands",
    command_names=(
        "agent",
        "backup",
        "check",
        "controller",
        "doctor",
        "qualify",
        "init",
        "inventory",
        "job",
        "key",
        "notify",
        "pause",
        "plan",
        "point",
        "policy",
        "repo",
        "restore",
        "resume",
        "status",
        "vcenter",
        "why",
    ),
    context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "HOLDFAST"},
)
@click.option("--home", default="", help=f"Folder of this installation (also {HOME_VARIABLE}).")
@click.pass_context
def holdfast(context: click.Context, *, home: str) -> None:
    """Back up and restore VMware virtual machines."""
    context.obj = Entry(places=find_places({HOME_VARIABLE: home} if home else None))


@holdfast.command()
def version() -> None:
    """The version of this program."""
    click.echo(package_version("holdfast-controller"))


@holdfast.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """What to put into a shell's start-up file for completion."""
    if shell == "fish":
        click.echo("env _HOLDFAST_COMPLETE=fish_source holdfast | source")
    else:
        click.echo(f'eval "$(_HOLDFAST_COMPLETE={shell}_source holdfast)"')


def main() -> None:
    """The program. Exit codes: see the README."""
    leave(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """One command; returns the exit status. With ``--json`` every error is a document on stdout too."""
    as_json = "--json" in arguments
    try:
        check_text(arguments)
        result = holdfast.main(args=arguments, prog_name="holdfast", standalone_mode=False)
    except HoldfastError as error:
        _show(error, as_json=as_json)
        return error.exit_status
    except click.exceptions.Abort:
        _show(Interrupted("nothing more was done"), as_json=as_json)
        return INTERRUPTED_STATUS
    except click.ClickException as error:
        if as_json:
            _print_document(UsageError(error.format_message()))
        error.show()
        return error.exit_code
    except Exception as error:
        logging.getLogger(__name__).debug("unexpected error", exc_info=True)
        bug = HoldfastError(
            f"{type(error).__name__}: {error}",
            advice="this is a bug in Holdfast; please report it with these lines:",
        )
        _show(bug, as_json=as_json)
        click.echo("".join(traceback.format_exception(error)), err=True)
        return bug.exit_status
    return result if isinstance(result, int) else 0


def _show(error: HoldfastError, *, as_json: bool) -> None:
    if as_json:
        _print_document(error)
    note(error.line())
    if error.advice:
        note(error.advice)


def _print_document(error: HoldfastError) -> None:
    click.echo(json.dumps(ErrorReport.of(error).document()))
