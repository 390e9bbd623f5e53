"""`holdfast check`: is the repository whole?"""

from __future__ import annotations

import click

from holdfast_common.wire import operator_pb2
from holdfast_controller.commands.backup import show_started
from holdfast_controller.commands.entry import Entry, json_option, pass_entry
from holdfast_controller.commands.following import follow
from holdfast_controller.commands.operator_client import operators
from holdfast_controller.commands.output import Output


@click.command()
@click.argument("points", nargs=-1, metavar="[POINT…]")
@click.option("--read-data", is_flag=True, help="Decode and hash all data, not only its structure.")
@click.option(
    "--subset",
    default="",
    metavar="N/M|P%",
    help="Read only part N of M, or the P percent that were proven longest ago. A proxy's word on what it wrote"
    " itself does not count for that while another one reads.",
)
@click.option(
    "--agent",
    default="",
    metavar="NAME",
    help="Id or host name of a proxy; without it those that reach the repository take turns.",
)
@click.option("--wait/--detach", default=True, help="Wait for the end, or return at once.")
@json_option
@pass_entry
@click.pass_context
def check(
    context: click.Context,
    entry: Entry,
    *,
    points: tuple[str, ...],
    read_data: bool,
    subset: str,
    agent: str,
    wait: bool,
    output: Output,
) -> None:
    """Check the repository, or some restore points; exits with 13 when something is damaged.

    What of which point is lost: `holdfast job damages JOB` lists it whole, and so does --json.
    """
    request = operator_pb2.StartCheckRequest(
        read_data=read_data, point_ids=points, subset=subset, agent=agent
    )
    with operators(entry.places) as client:
        started = client.call(client.stub.StartCheck, request)
        if wait:
            context.exit(follow(client, started.run_id, output))
        show_started(started, output)
