"""`holdfast controller run`: the daemon."""

from __future__ import annotations

import asyncio
import faulthandler
import json
import os
import signal
from pathlib import Path

import click

from holdfast_common.errors import ConfigurationError
from holdfast_common.logs import log_to_stderr
from holdfast_common.service_manager import ServiceManager
from holdfast_common.trust.keys import write_private
from holdfast_controller.commands.entry import Entry, pass_entry
from holdfast_controller.configuration import read_configuration


@click.group()
def controller() -> None:
    """The controller itself."""


@controller.command()
@click.option(
    "--ready-file",
    type=click.Path(path_type=Path),
    default=None,
    help="Written as JSON with the ports in use once everything listens.",
)
@pass_entry
def run(entry: Entry, *, ready_file: Path | None) -> None:
    """Run until SIGTERM or SIGINT; running jobs are stopped cleanly."""
    # imported here: no other command waits for the daemon's code
    from holdfast_controller.service.daemon import run_daemon
    from holdfast_controller.service.listeners import BoundPorts, only_controller
    from holdfast_controller.service.open_files import allow_many_open_files

    configuration = read_configuration(entry.places.controller_configuration)
    check_database(entry.places.database)
    log_to_stderr()
    allow_many_open_files()
    faulthandler.enable()  # a watchdog's SIGABRT shows in the log what every thread waited for
    manager = ServiceManager.of_environment()

    def ready(ports: BoundPorts) -> None:
        if ready_file is not None:
            content = {
                "session": ports.session,
                "enrolment": ports.enrolment,
                "operators": ports.operators,
                "metrics": ports.metrics,
                "pid": os.getpid(),
            }
            write_private(ready_file, json.dumps(content).encode(), mode=0o644)
        manager.ready()

    async def main() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        await run_daemon(entry.places, configuration, stop=stop, ready=ready, manager=manager)

    with only_controller(entry.places):
        asyncio.run(main())


def check_database(file: Path) -> None:
    """A new, empty one would know of no debt, no point and no key. Raises: ConfigurationError."""
    try:
        lost = file.stat().st_size == 0
    except FileNotFoundError:
        lost = True
    except OSError as error:
        raise ConfigurationError(
            f"the controller's database cannot be used: {error.strerror}", file=str(file)
        ) from error
    if lost:
        raise ConfigurationError(
            "the controller's database is gone; it is not made anew",
            file=str(file),
            advice="mount what it lies on, or put back a copy of it",
        )
