"""`holdfast`: parse, call, print. Errors go to stderr as ``code: message (facts)`` and what to do next."""

from __future__ import annotations

import json
import logging
import sys
import traceback
from importlib.metadata import version as package_version

import click

from holdfast_common.errors import HoldfastError
from holdfast_common.job_result import ErrorReport
from holdfast_common.places import HOME_VARIABLE, find_places
from holdfast_controller.commands.entry import Entry
from holdfast_controller.commands.lazy_group import LazyGroup

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
        "init",
        "inventory",
        "job",
        "key",
        "point",
        "restore",
        "status",
        "vcenter",
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
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """One command; returns the exit status."""
    try:
        result = holdfast.main(args=arguments, prog_name="holdfast", standalone_mode=False)
    except HoldfastError as error:
        _show(error, as_json="--json" in arguments)
        return error.exit_status
    except click.exceptions.Abort:
        click.echo("interrupted: nothing more was done", err=True)
        return INTERRUPTED_STATUS
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except Exception as error:
        logging.getLogger(__name__).debug("unexpected error", exc_info=True)
        click.echo(f"failed: {type(error).__name__}: {error}", err=True)
        click.echo("this is a bug in Holdfast; please report it with these lines:", err=True)
        click.echo("".join(traceback.format_exception(error)), err=True)
        return 1
    return result if isinstance(result, int) else 0


def _show(error: HoldfastError, *, as_json: bool) -> None:
    if as_json:
        report = ErrorReport.of(error)
        click.echo(
            json.dumps(
                {
                    "type": "error",
                    "schema": 1,
                    "code": report.code,
                    "message": report.message,
                    "facts": dict(report.facts),
                    "advice": report.advice,
                    "exit_status": report.exit_status,
                }
            )
        )
    click.echo(error.line(), err=True)
    if error.advice:
        click.echo(error.advice, err=True)
