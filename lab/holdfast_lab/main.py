"""The program ``holdfast-lab``: runs a lab, and talks to a running one over its control socket."""

from __future__ import annotations

import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import click

from holdfast_lab.cli_lab import LAB_COMMANDS
from holdfast_lab.cli_machines import MACHINE_COMMANDS
from holdfast_lab.cli_output import Answer, show, state_option
from holdfast_lab.cli_tags import TAG_COMMANDS
from holdfast_lab.errors import LabError
from holdfast_lab.inventory_plan import InventoryPlan, parse_size

if TYPE_CHECKING:
    from holdfast_lab.lab import Mode

FAILED = 1


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
def cli() -> None:
    """A vSphere for one machine: real SOAP, real disks, misbehaviour on request."""


@cli.command("run")
@state_option
@click.option("--port", default=0, show_default=True, help="TCP port; 0 takes any free one.")
@click.option("--listen", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--mode", type=click.Choice(["vcenter", "host"]), default="vcenter", show_default=True
)
@click.option("--inventory", default="demo", show_default=True, help="demo, empty, or a JSON file.")
@click.option("--disk-size", default="64M", show_default=True, help="Size of the demo's disks.")
@click.option(
    "--ready-file",
    type=click.Path(path_type=Path),
    help="Written with the address once the lab answers.",
)
def run(
    *,
    state: Path,
    port: int,
    listen: str,
    mode: str,
    inventory: str,
    disk_size: str,
    ready_file: Path | None,
) -> None:
    """Run a lab until SIGTERM or SIGINT."""
    from holdfast_lab.server import running_lab  # pyVmomi takes half a second to import

    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: ended.set())
    plan = plan_named(inventory, disk_size)
    wanted: Mode = "host" if mode == "host" else "vcenter"
    with running_lab(state, mode=wanted, inventory=plan, host=listen, port=port) as lab:
        show(Answer(text=f"lab ready: {lab.url} (user {lab.user}, state {state})"))
        if ready_file is not None:
            temporary = ready_file.with_name(ready_file.name + ".new")
            temporary.write_text(lab.url + "\n", encoding="utf-8")
            temporary.replace(ready_file)
        ended.wait()
    show(Answer(text="lab stopped"))


def plan_named(inventory: str, disk_size: str) -> InventoryPlan:
    """The plan that the command line names. Raises: LabError."""
    if inventory == "demo":
        return InventoryPlan.demo(disk_bytes=parse_size(disk_size))
    if inventory == "empty":
        return InventoryPlan.empty()
    return InventoryPlan.load(Path(inventory))


for command in (*MACHINE_COMMANDS, *LAB_COMMANDS, *TAG_COMMANDS):
    cli.add_command(command)


def main() -> None:
    """Entry point: errors of the lab are one line on stderr and exit code 1."""
    try:
        cli.main(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.Abort:
        sys.exit(130)
    except LabError as error:
        click.echo(f"failed: {error}", err=True)
        sys.exit(FAILED)


if __name__ == "__main__":
    main()
