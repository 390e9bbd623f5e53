"""`holdfast repo init|list|show|check|repair|scrub|prune|forget|rebuild-catalogue`: the repository itself."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import click

from holdfast_common.errors import IntegrityError, UsageError
from holdfast_common.repository.directory_store import DirectoryStore
from holdfast_common.repository.hang_watch import watched_files, while_it_answers
from holdfast_common.repository.loss import DamagedObject
from holdfast_common.repository.mount_probe import check_answers
from holdfast_common.repository.scrub import scrub as scrubbed
from holdfast_common.units import MIB
from holdfast_common.wire import operator_pb2
from holdfast_controller.commands.backup import show_started
from holdfast_controller.commands.check import check
from holdfast_controller.commands.entry import Entry, json_option, pass_entry
from holdfast_controller.commands.following import follow
from holdfast_controller.commands.operator_client import operators
from holdfast_controller.commands.output import Output
from holdfast_controller.commands.repo_init import init_repository
from holdfast_controller.commands.repo_list import list_repositories
from holdfast_controller.commands.repo_show import show
from holdfast_controller.commands.repository_change import (
    forget_points,
    give_up_option,
    show_repository_change,
)
from holdfast_controller.commands.retention_options import retention_options, says_nothing

SECONDS_MAX: Final = (1 << 32) - 1  # what the controller is told
GRACE_MINUTES_MAX: Final = 10 * 366 * 24 * 60
MOVE_MIB_MAX: Final = 1 << 42


@click.group()
def repo() -> None:
    """The repository."""


repo.add_command(init_repository)
repo.add_command(list_repositories)
repo.add_command(show)
repo.add_command(check)  # the same as `holdfast check`


@repo.command()
@click.option(
    "--from",
    "source_folder",
    default="",
    metavar="FOLDER",
    help="A copy of this repository, as the proxy sees it; it is only read.",
)
@click.option(
    "--from-key",
    "key_file",
    type=click.Path(path_type=Path),
    default=None,
    metavar="FILE",
    help="FOLDER is another repository that backs the same VMs up: a key file that opens it, or a file with"
    " its recovery sheet. The controller and the proxy must reach FOLDER under the same path.",
)
@click.option("--dry-run", is_flag=True, help="Tell what could be mended, and change nothing.")
@click.option(
    "--agent",
    default="",
    metavar="NAME",
    help="Id or host name of a proxy; without it one whose [repair] folders list FOLDER.",
)
@click.option("--wait/--detach", default=True, help="Wait for the end, or return at once.")
@json_option
@pass_entry
@click.pass_context
def repair(
    context: click.Context,
    entry: Entry,
    *,
    source_folder: str,
    key_file: Path | None,
    dry_run: bool,
    agent: str,
    wait: bool,
    output: Output,
) -> None:
    """Mend what can be, and say exactly what stays lost; exits with 13 when something does.

    Nothing damaged leaves its place before its replacement was stored and proven, and it is kept under aside/.
    `holdfast job damages JOB` lists every point and byte range that stays lost, and so does --json.
    Refused beside a prune or another repair.
    """
    if key_file is not None and not source_folder:
        raise UsageError("--from-key opens what --from names; name it")
    request = operator_pb2.StartRepairRequest(
        source_folder=source_folder,
        dry_run=dry_run,
        other_key=b"" if key_file is None else key_file.read_bytes(),
        agent=agent,
    )
    with operators(entry.places) as client:
        started = client.call(client.stub.StartRepair, request)
        if wait:
            context.exit(follow(client, started.run_id, output))
        show_started(started, output)


@repo.command()
@click.option("--dry-run", is_flag=True, help="Say what would be done.")
@click.option(
    "--grace-minutes",
    type=click.IntRange(0, GRACE_MINUTES_MAX),
    default=None,
    help="How long what is dead stays before it is deleted; a day by default.",
)
@click.option(
    "--seconds",
    type=click.IntRange(1, SECONDS_MAX),
    default=None,
    help="Stop after that time; without it, when all is done.",
)
@click.option(
    "--move-mib",
    type=click.IntRange(1, MOVE_MIB_MAX),
    default=None,
    help="Move at most so much; without it there is no limit.",
)
@click.option("--accept-clock", is_flag=True, help="You looked: this machine's clock is right.")
@click.option("--wait/--detach", default=True, help="Wait for the end, or return at once.")
@json_option
@pass_entry
@click.pass_context
def prune(
    context: click.Context,
    entry: Entry,
    *,
    dry_run: bool,
    grace_minutes: int | None,
    seconds: int | None,
    move_mib: int | None,
    accept_clock: bool,
    wait: bool,
    output: Output,
) -> None:
    """Delete what no restore point needs: found dead once, and again after the grace time.

    A job: backups may go on meanwhile, and it may be cancelled at any time; the next one goes on.
    Refused beside a repair, and when a point that the controller knows is not in the repository.
    """
    request = operator_pb2.PruneRequest(
        dry_run=dry_run,
        grace_minutes=grace_minutes,
        seconds_max=seconds or 0,  # on the wire 0 is no limit; nobody can type it
        moved_bytes_max=(move_mib or 0) * MIB,
        accept_clock=accept_clock,
    )
    with operators(entry.places) as client:
        started = client.call(client.stub.StartPrune, request)
        if wait:
            context.exit(follow(client, started.run_id, output))
        show_started(started, output)


@repo.command()
@click.argument("points", nargs=-1, metavar="[POINT…]")
@click.option(
    "--vm",
    default=None,
    metavar="NAME|UUID",
    help="Only points of this VM, for the rule; its instance uuid if more than one has the name.",
)
@retention_options
@click.option(
    "--by-policies",
    is_flag=True,
    help="By the rules of policies, as the controller itself does it; --vm is of which VM.",
)
@click.option("--accept-clock", is_flag=True, help="You looked: this machine's clock is right.")
@give_up_option
@click.option("--dry-run", is_flag=True, help="Say what would be done, and why.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
@pass_entry
def forget(
    entry: Entry,
    *,
    points: tuple[str, ...],
    vm: str | None,
    rule: operator_pb2.RetentionRule,
    by_policies: bool,
    accept_clock: bool,
    give_up: bool,
    dry_run: bool,
    yes: bool,
    output: Output,
) -> None:
    """Forget restore points; `holdfast repo prune` frees their room afterwards.

    Those that are named, those that no policy keeps, or those that no --keep-… option wants: each option counts for
    itself, and the newest point of an hour, day, week, month or year stands for it. Points that are damaged or partial
    never do. What is held, what a job reads and the last good point of a VM stays whatever the rule says, and everything
    does while the clock is in doubt. By policies, so does everything of a VM that no policy covers.
    """
    if sum((bool(points), not says_nothing(rule), by_policies)) != 1:
        raise UsageError(
            "name restore points, or give --keep-last or another --keep option, or --by-policies: one of them"
        )
    if vm is not None and (points or not vm):
        raise UsageError(
            "--vm tells of which VM the --keep options or --by-policies are: give both, and a VM"
        )
    if give_up and not points:
        raise UsageError("--give-up is only for restore points that are named")
    request = operator_pb2.ForgetRequest(
        point_ids=points,
        vm=vm or "",
        rule=rule,
        by_policies=by_policies,
        accept_clock=accept_clock,
        give_up=points if give_up else (),
    )
    forget_points(entry, request, output, dry_run=dry_run, yes=yes)


@repo.command("rebuild-catalogue")
@click.option("--dry-run", is_flag=True, help="Say what would be done.")
@json_option
@pass_entry
def rebuild_catalogue(entry: Entry, *, dry_run: bool, output: Output) -> None:
    """Add to the controller's catalogue what restore points it lacks, from the repository alone.

    Points that it knows and that are missing there stay known, and are told.
    """
    with operators(entry.places) as client:
        request = operator_pb2.RebuildRequest(dry_run=dry_run)
        reply = client.call(client.stub.RebuildCatalogue, request)
        show_repository_change(reply, output, "catalogue")


@repo.command()
@click.argument("folder", type=Path)  # click.Path would look at a mount that may hang
@json_option
def scrub(folder: Path, *, output: Output) -> None:
    """Compare every pack in FOLDER with its own digest: no key, no controller, only leave to read.

    Finds every changed byte of the data, but not what of which restore point is lost by it, nor packs that
    are missing: `holdfast repo check --read-data` does.
    """
    folder = folder.absolute()

    def compared() -> list[DamagedObject]:
        with DirectoryStore.open(folder, files=watched_files(folder)) as store:
            return scrubbed(store)

    check_answers(folder)
    damaged = while_it_answers(compared)
    if output.as_json:
        output.document(
            "scrubbed", {"damaged": [{"name": i.name, "reason": i.reason} for i in damaged]}
        )
    for item in damaged:
        output.line(f"{item.name}: {item.reason}")
    if damaged:
        raise IntegrityError(
            "packs are damaged",
            packs=len(damaged),
            advice="`holdfast repo check --read-data` tells which points are concerned,"
            " `holdfast repo repair --from COPY` mends them from a copy",
        )
    output.line("every pack is what its name says")
