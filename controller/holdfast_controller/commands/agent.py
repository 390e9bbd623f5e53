"""`holdfast agent token|list|revoke`."""

from __future__ import annotations

import click

from holdfast_common.wire import operator_pb2
from holdfast_controller.commands.entry import Entry, json_option, pass_entry
from holdfast_controller.commands.operator_client import operators
from holdfast_controller.commands.output import Output, note


@click.group()
def agent() -> None:
    """Agents: let them in, see them, shut them out."""


@agent.command()
@click.option("--role", type=click.Choice(["proxy"]), default="proxy", show_default=True)
@click.option("--host-name", required=True, help="The host that may use the token.")
@click.option(
    "--minutes",
    type=click.IntRange(1, 24 * 60),
    default=15,
    show_default=True,
    help="How long it is valid.",
)
@json_option
@pass_entry
def token(entry: Entry, *, role: str, host_name: str, minutes: int, output: Output) -> None:
    """A join token: shown once, good for one enrolment."""
    with operators(entry.places) as client:
        created = client.call(
            client.stub.CreateToken,
            operator_pb2.CreateTokenRequest(role=role, host_name=host_name, valid_minutes=minutes),
        )
    if output.as_json:
        output.document("token", created)
        return
    output.line(created.token)
    note(
        f"valid once, until {created.expires_at}; on {host_name}: holdfast-agent enrol --token-file FILE …"
    )


@agent.command("list")
@json_option
@pass_entry
def list_agents(entry: Entry, *, output: Output) -> None:
    """All agents, and what they reach."""
    with operators(entry.places) as client:
        reply = client.call(client.stub.ListAgents, operator_pb2.Empty())
    if output.as_json:
        output.document("agents", reply)
        return
    output.table(
        [
            "AGENT",
            "HOST",
            "ROLE",
            "STATE",
            "LAST SEEN",
            "CERTIFICATE ENDS",
            "TRANSPORTS",
            "DATASTORES",
        ],
        [
            [
                row.agent_id,
                row.host_name,
                row.role,
                row.state,
                row.last_seen_at[:19],
                row.certificate_ends_at[:10],
                ", ".join(row.transports),
                ", ".join(row.datastores),
            ]
            for row in reply.agents
        ],
    )


@agent.command()
@click.argument("agent_id", metavar="AGENT")
@click.option("--yes", is_flag=True)
@click.option(
    "--give-up-damaged",
    is_flag=True,
    help="Also when points of this agent are damaged and nothing tells what they were: they never count again.",
)
@json_option
@pass_entry
def revoke(
    entry: Entry, *, agent_id: str, yes: bool, give_up_damaged: bool, output: Output
) -> None:
    """Shut an agent out for ever; its live session is cut at once.

    That is done first, whatever state the repository is in. Then the repository refuses what its key signs
    from now on; what it stored before stays. If damage there stands in the way, the command says what to
    repair, and is to be given again.
    """
    if not yes:
        click.confirm(f"Revoke {agent_id}?", abort=True, err=True)
    with operators(entry.places) as client:
        revoked = client.call(
            client.stub.RevokeAgent,
            operator_pb2.AgentRevocation(agent=agent_id, give_up_damaged=give_up_damaged),
        )
    if output.as_json:
        output.document("agent", revoked)
        return
    output.line(f"{revoked.agent_id} ({revoked.host_name}): {revoked.state}")
    for line in revoked.told:
        output.line(line)
