"""The program `holdfast-agent`: enrol, run, configure, show."""

from __future__ import annotations

import faulthandler
import json
import logging
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import click
import msgspec

from holdfast_agent.capabilities import host_name, program_version, reach_of
from holdfast_agent.certificates import load_identity
from holdfast_agent.configuration import (
    AgentConfiguration,
    HotAddConfiguration,
    RestoreConfiguration,
    configuration_text,
    read_configuration,
    session_address,
)
from holdfast_agent.daemon import AgentDaemon, only_agent
from holdfast_agent.enrolment import Enrolment, enrol, write_configuration
from holdfast_agent.job_runner import PipelineTable
from holdfast_agent.ledger import AgentLedger
from holdfast_common.arguments import check_text
from holdfast_common.clock import utc_text
from holdfast_common.errors import HoldfastError, Interrupted, Refused, TimedOut, UsageError
from holdfast_common.job_result import ErrorReport
from holdfast_common.logs import log_to_stderr
from holdfast_common.places import find_places
from holdfast_common.repository.forgetting import keep_one_heap
from holdfast_common.repository.hang_watch import leave
from holdfast_common.repository.mount_probe import check_answers
from holdfast_common.service_manager import ServiceManager
from holdfast_common.trust.join_token import parse_join_token

INTERRUPTED_STATUS: Final = 130

_json_option = click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")


@click.group(context_settings={"auto_envvar_prefix": "HOLDFAST_AGENT"})
@click.version_option(program_version(), prog_name="holdfast-agent")
def holdfast_agent() -> None:
    """Holdfast's agent: moves the data on a backup proxy."""


@holdfast_agent.command("enrol")
@click.option(
    "--token", help="Of `holdfast agent token`. Others on this host can see it: see --token-file."
)
@click.option(
    "--token-file", type=click.File("r"), help="A file with the token; - for standard input."
)
@click.option("--controller", required=True, help="HOST or HOST:PORT of the controller's sessions.")
@click.option(
    "--enrolment-port", type=click.IntRange(1, 65535), help="When it differs from the token's."
)
@click.option("--role", type=click.Choice(["proxy"]), default="proxy", show_default=True)
@click.option(
    "--host-name", default=host_name, show_default="this host's", help="As the token has it."
)
@click.option(
    "--repository", "repositories", multiple=True, metavar="ID=PATH", help="Where a repository is."
)
@click.option(
    "--datastore",
    "datastores",
    multiple=True,
    metavar="ID=PATH",
    help="Where a datastore is mounted.",
)
@click.option("--vm-bios-uuid", default="", help="Of this proxy's own VM: offers hot-add.")
@click.option(
    "--device-folder", default="", help="Where hot-added disks appear; empty: SCSI devices."
)
@click.option(
    "--restore-folder", "restore_folders", multiple=True, help="Where files may be restored to."
)
@_json_option
def enrol_command(
    *,
    token: str | None,
    token_file: Any,  # noqa: ANN401 - an open text file of click's
    controller: str,
    enrolment_port: int | None,
    role: str,
    host_name: str,
    repositories: tuple[str, ...],
    datastores: tuple[str, ...],
    vm_bios_uuid: str,
    device_folder: str,
    restore_folders: tuple[str, ...],
    as_json: bool,
) -> None:
    """Join a controller: make keys, get a certificate, write agent.toml."""
    if (token is None) == (token_file is None):
        raise UsageError("give one of --token and --token-file")
    text = token_file.read(10_000) if token_file is not None else (token or "")
    configuration = enrol(
        find_places(),
        Enrolment(
            token=parse_join_token(text),
            controller=controller,
            role=role,
            host_name=host_name,
            repositories=_pairs(repositories, "--repository"),
            datastores=_pairs(datastores, "--datastore"),
            hot_add=HotAddConfiguration(vm_bios_uuid=vm_bios_uuid, device_folder=device_folder),
            restore=RestoreConfiguration(folders=tuple(map(_folder, restore_folders))),
            enrolment_port=enrolment_port or 0,
        ),
    )
    _note_missing(configuration)
    _print(
        {"agent_id": configuration.agent_id, "controller": configuration.controller, "role": role},
        f"enrolled as {configuration.agent_id} at {configuration.controller}; "
        "start it with `holdfast-agent run`",
        as_json=as_json,
    )


@holdfast_agent.command("run")
@click.option("--verbose", is_flag=True, help="Log details.")
def run_command(verbose: bool) -> None:
    """Serve the controller until stopped (SIGTERM, SIGINT)."""
    keep_one_heap()
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    places = find_places()
    role = load_identity(places.agent_state).role
    with only_agent(places):
        daemon = AgentDaemon(
            places,
            pipelines=_pipelines_of(role),
            stop=stop,
            manager=ServiceManager.of_environment(),
        )
        log_to_stderr(level=logging.DEBUG if verbose else logging.INFO)
        faulthandler.enable()  # a watchdog's SIGABRT shows in the log what every thread waited for
        daemon.run()


@holdfast_agent.command("configure")
@click.option("--controller", help="HOST:PORT of the controller's sessions.")
@click.option(
    "--repository", "repositories", multiple=True, metavar="ID=PATH", help="Add or change one."
)
@click.option("--no-repository", "no_repositories", multiple=True, metavar="ID", help="Forget one.")
@click.option(
    "--datastore", "datastores", multiple=True, metavar="ID=PATH", help="Add or change one."
)
@click.option("--no-datastore", "no_datastores", multiple=True, metavar="ID", help="Forget one.")
@click.option("--vm-bios-uuid", help="Of this proxy's own VM; empty: no hot-add.")
@click.option("--device-folder", help="Where hot-added disks appear; empty: SCSI devices.")
@click.option("--restore-folder", "restore_folders", multiple=True, help="Add one.")
@click.option("--no-restore-folder", "no_restore_folders", multiple=True, help="Forget one.")
@_json_option
def configure_command(
    *,
    controller: str | None,
    repositories: tuple[str, ...],
    no_repositories: tuple[str, ...],
    datastores: tuple[str, ...],
    no_datastores: tuple[str, ...],
    vm_bios_uuid: str | None,
    device_folder: str | None,
    restore_folders: tuple[str, ...],
    no_restore_folders: tuple[str, ...],
    as_json: bool,
) -> None:
    """Change what this agent may reach. A running agent takes it up within seconds."""
    places = find_places()
    old = read_configuration(places.agent_configuration)
    forgotten = set(map(_folder, no_restore_folders))
    unknown = forgotten - set(old.restore.folders)
    if unknown:
        raise UsageError("this is no restore folder", folder=min(unknown))
    folders = dict.fromkeys([*old.restore.folders, *map(_folder, restore_folders)])
    hot_add = old.hot_add
    if vm_bios_uuid is not None:
        hot_add = msgspec.structs.replace(hot_add, vm_bios_uuid=vm_bios_uuid)
    if device_folder is not None:
        hot_add = msgspec.structs.replace(hot_add, device_folder=device_folder)
    new = msgspec.structs.replace(
        old,
        controller=old.controller if controller is None else session_address(controller),
        repositories=_changed(
            old.repositories, _pairs(repositories, "--repository"), no_repositories
        ),
        datastores=_changed(old.datastores, _pairs(datastores, "--datastore"), no_datastores),
        hot_add=hot_add,
        restore=RestoreConfiguration(
            folders=tuple(folder for folder in folders if folder not in forgotten)
        ),
    )
    write_configuration(places, new)
    _note_missing(new)
    _print(msgspec.to_builtins(new), configuration_text(new).rstrip(), as_json=as_json)


@holdfast_agent.command("show")
@_json_option
def show_command(as_json: bool) -> None:
    """Who this agent is, what it reaches, and what it still has to tell the controller."""
    places = find_places()
    configuration: AgentConfiguration = read_configuration(places.agent_configuration)
    identity = load_identity(places.agent_state)
    reach = reach_of(configuration)
    ledger = AgentLedger(places.agent_state / "attempts")
    facts = {
        "agent_id": identity.agent_id,
        "role": identity.role,
        "controller": configuration.controller,
        "certificate_ends_at": utc_text(identity.peer.ends_at),
        "transports": [kind.value for kind in reach.transports],
        "repositories": configuration.repositories,
        "datastores": {
            found.datastore_id: {
                "path": configuration.datastores[found.datastore_id],
                "writable": found.writable,
            }
            for found in reach.datastores
        },
        "datastores_missing": sorted(
            set(configuration.datastores) - {found.datastore_id for found in reach.datastores}
        ),
        "restore_folders": list(reach.restore_folders),
        "repair_folders": list(reach.repair_folders),
        "attempts_at_work": len(ledger.unfinished()),
        "results_to_send": len(ledger.results()),
    }
    lines = [f"{name.replace('_', ' ')}: {_plain(value)}" for name, value in facts.items()]
    _print(facts, "\n".join(lines), as_json=as_json)


def main() -> None:
    """The program. Exit codes: see the README."""
    leave(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """One command; the exit status. With ``--json`` every error is a document on stdout too."""
    as_json = "--json" in arguments
    try:
        check_text(arguments)
        holdfast_agent.main(args=arguments, prog_name="holdfast-agent", standalone_mode=False)
    except HoldfastError as error:
        _show_error(error, as_json=as_json)
        return error.exit_status
    except click.exceptions.Abort:
        _show_error(Interrupted("nothing more was done"), as_json=as_json)
        return INTERRUPTED_STATUS
    except click.ClickException as error:
        if as_json:
            _print_document(UsageError(error.format_message()))
        error.show()
        return error.exit_code
    except Exception as error:  # noqa: BLE001 - the program's outermost edge
        bug = HoldfastError(
            f"{type(error).__name__}: {error}",
            advice="this is a bug in Holdfast; please report it with these lines:",
        )
        _show_error(bug, as_json=as_json)
        traceback.print_exc()
        return bug.exit_status
    return 0


def _pipelines_of(role: str) -> Callable[[], PipelineTable]:
    """What this role can do, imported when the first job comes: guests have no numpy and no zstd."""
    if role != "proxy":
        raise Refused("this version has no jobs for agents of this role", role=role)

    def proxy_pipelines() -> PipelineTable:
        from holdfast_agent.pipelines.pipeline_table import PIPELINES

        return PIPELINES

    return proxy_pipelines


def _pairs(texts: tuple[str, ...], option: str) -> dict[str, str]:
    """``ID=PATH``: the last ``=`` parts them, because a datastore's id is a URL."""
    pairs = {}
    for text in texts:
        name, separator, path = text.rpartition("=")
        if not separator or not name or not path:
            raise UsageError(f"{option} is ID=PATH", value=text[:200])
        pairs[name] = _folder(path)
    return pairs


def _folder(text: str) -> str:
    return str(Path(text).absolute())


def _note_missing(configuration: AgentConfiguration) -> None:
    """Not an error: a share may be mounted later."""
    folders = {**configuration.repositories, **configuration.datastores}
    named = [*folders.items(), *(("restores", folder) for folder in configuration.restore.folders)]
    for name, folder in named:
        try:
            check_answers(Path(folder))
        except TimedOut as error:
            print(f"{error.line()} ({name})", file=sys.stderr)
            continue
        if not Path(folder).is_dir():
            print(f"there is no folder {folder} yet ({name})", file=sys.stderr)


def _changed(
    old: Mapping[str, str], added: Mapping[str, str], removed: tuple[str, ...]
) -> dict[str, str]:
    unknown = set(removed) - set(old)
    if unknown:
        raise UsageError("there is nothing of this id to forget", id=min(unknown))
    return {**{key: path for key, path in old.items() if key not in removed}, **added}


def _plain(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} = {_plain(found)}" for key, found in value.items()) or "none"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return str(value)


def _print(facts: object, text: str, *, as_json: bool) -> None:
    print(json.dumps(facts) if as_json else text)


def _show_error(error: HoldfastError, *, as_json: bool) -> None:
    if as_json:
        _print_document(error)
    print(error.line(), file=sys.stderr)
    if error.advice:
        print(error.advice, file=sys.stderr)


def _print_document(error: HoldfastError) -> None:
    print(json.dumps(ErrorReport.of(error).document()))
