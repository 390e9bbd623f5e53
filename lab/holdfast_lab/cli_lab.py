"""Commands of ``holdfast-lab`` about the lab as a whole."""

from __future__ import annotations

from pathlib import Path

import click

from holdfast_lab.cli_output import PlainValue, give, json_option, pairs, state_option


@click.group("misbehave")
def misbehave() -> None:
    """Let something go wrong."""


@misbehave.command("arm")
@click.argument("kind")
@click.option("--match", "matches", multiple=True, metavar="FACT=PATTERN", help="method, vm, …")
@click.option("--nth", type=int, default=1, show_default=True, help="The first one that bites.")
@click.option("--times", type=int, default=1, show_default=True, help="How many do; 0: for ever.")
@click.option("--set", "parameters", multiple=True, metavar="NAME=VALUE", help="seconds, fault, …")
@state_option
@json_option
def arm(
    *,
    kind: str,
    matches: tuple[str, ...],
    nth: int,
    times: int,
    parameters: tuple[str, ...],
    state: Path,
    as_json: bool,
) -> None:
    """Arm one misbehaviour; ``kinds`` lists them."""
    give(
        state,
        "misbehave",
        as_json=as_json,
        kind=kind,
        match=pairs(matches),
        nth=nth,
        times=times,
        parameters=pairs(parameters),
    )


@misbehave.command("kinds")
@state_option
@json_option
def kinds(state: Path, *, as_json: bool) -> None:
    """What can go wrong."""
    give(state, "misbehaviour-kinds", as_json=as_json, text=_kind_lines)


def _kind_lines(value: PlainValue) -> str:
    return "\n".join(f"{name:24}{meaning}" for name, meaning in value.items())


@misbehave.command("list")
@state_option
@json_option
def rules(state: Path, *, as_json: bool) -> None:
    """What is armed, and how often it bit."""
    give(state, "misbehaviour-list", as_json=as_json)


@misbehave.command("release")
@click.argument("rule", required=False)
@state_option
@json_option
def release(rule: str | None, state: Path, *, as_json: bool) -> None:
    """Let go on what a rule (or all) holds."""
    give(state, "misbehaviour-release", as_json=as_json, rule=rule)


@misbehave.command("disarm")
@click.argument("rule", required=False)
@state_option
@json_option
def disarm(rule: str | None, state: Path, *, as_json: bool) -> None:
    """Take a rule (or all) off."""
    give(state, "misbehaviour-disarm", as_json=as_json, rule=rule)


@click.command("calls")
@click.option("--after", type=int, default=0, help="Only lines with a higher number.")
@click.option("--event", help="Only call, task, attach, detach, stream_open, …")
@click.option("--method", help="Only calls of this method.")
@state_option
@json_option
def calls(after: int, event: str | None, method: str | None, state: Path, *, as_json: bool) -> None:
    """The log: every call, task, attach, detach and stream."""
    give(state, "calls", as_json=as_json, text=_log_lines, after=after, event=event, method=method)


def _log_lines(value: PlainValue) -> str:
    lines = []
    for each in value:
        facts = "  ".join(
            f"{name}={fact}"
            for name, fact in each.items()
            if name not in ("n", "time", "event", "session") and fact not in (None, "")
        )
        lines.append(f"{each['n']:6} {each['time']} {each['event']:12} {facts}")
    return "\n".join(lines) or "nothing"


@click.command("counters")
@state_option
@json_option
def counters(state: Path, *, as_json: bool) -> None:
    """Streams and bytes by host and by datastore."""
    give(state, "counters", as_json=as_json, text=_counter_lines)


def _counter_lines(value: PlainValue) -> str:
    lines = []
    for kind, by_name in value.items():
        for name, counts in by_name.items():
            shown = "  ".join(f"{what}={number}" for what, number in counts.items())
            lines.append(f"{kind} {name}: {shown}")
    return "\n".join(lines) or "no streams yet"


@click.command("tasks")
@click.option("--running", is_flag=True, help="Only those under way.")
@state_option
@json_option
def tasks(state: Path, *, running: bool, as_json: bool) -> None:
    """The vSphere tasks."""
    give(state, "tasks", as_json=as_json, running=running)


@click.group("session")
def session() -> None:
    """Sessions of clients."""


@session.command("list")
@state_option
@json_option
def list_sessions(state: Path, *, as_json: bool) -> None:
    """Who is logged in."""
    give(state, "session-list", as_json=as_json)


@session.command("expire")
@click.option("--user", help="Only sessions of this user.")
@state_option
@json_option
def expire_sessions(user: str | None, state: Path, *, as_json: bool) -> None:
    """End sessions, as if they had been idle for too long."""
    give(state, "session-expire", as_json=as_json, user=user)


@click.group("datastore")
def datastore() -> None:
    """Datastores."""


@datastore.command("list")
@state_option
@json_option
def list_datastores(state: Path, *, as_json: bool) -> None:
    """Every datastore with its local path and files."""
    give(state, "datastore-list", as_json=as_json)


@datastore.command("add")
@click.argument("name")
@click.option("--kind", type=click.Choice(["NFS", "VMFS"]), default="VMFS", show_default=True)
@click.option("--capacity", default="64G", show_default=True)
@state_option
@json_option
def add_datastore(name: str, kind: str, capacity: str, state: Path, *, as_json: bool) -> None:
    """Make a datastore."""
    give(state, "datastore-add", as_json=as_json, name=name, kind=kind, capacity=capacity)


@datastore.command("set")
@click.argument("name")
@click.option("--capacity", help="The new size, such as 1G.")
@click.option("--accessible/--inaccessible", default=None)
@click.option("--read-latency", type=int, help="Milliseconds, as hosts measure them.")
@click.option("--read-latency-each-stream", type=int, help="So much more for every open stream.")
@state_option
@json_option
def set_datastore(
    *,
    name: str,
    capacity: str | None,
    accessible: bool | None,
    read_latency: int | None,
    read_latency_each_stream: int | None,
    state: Path,
    as_json: bool,
) -> None:
    """Change a datastore's size or how slow it is, or take it away from the hosts."""
    give(
        state,
        "datastore-set",
        as_json=as_json,
        name=name,
        capacity=capacity,
        accessible=accessible,
        read_latency=read_latency,
        read_latency_each_stream=read_latency_each_stream,
    )


LAB_COMMANDS = (misbehave, calls, counters, tasks, session, datastore)
