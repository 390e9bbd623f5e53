"""`holdfast vcenter add|list|test|refresh`."""

from __future__ import annotations

from pathlib import Path

import click

from holdfast_common.errors import Refused, UsageError
from holdfast_common.wire import operator_pb2
from holdfast_controller.commands.checks import show_checks
from holdfast_controller.commands.entry import Entry, json_option, pass_entry
from holdfast_controller.commands.operator_client import LOOK_TIMEOUT_SECONDS, operators
from holdfast_controller.commands.output import Output, note


@click.group()
def vcenter() -> None:
    """VCenters and single hosts."""


@vcenter.command()
@click.argument("url")
@click.option("--name", required=True, help="What it is called here.")
@click.option("--user", required=True)
@click.option(
    "--password-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A file with the password in its first line; asked for when not given.",
)
@click.option(
    "--certificate-sha256",
    default="",
    help="The certificate's fingerprint that you expect; otherwise it is shown and you are asked.",
)
@json_option
@pass_entry
def add(
    entry: Entry,
    *,
    url: str,
    name: str,
    user: str,
    password_file: Path | None,
    certificate_sha256: str,
    output: Output,
) -> None:
    """Add a vCenter or a single host, and pin its certificate; by a known name: change its account or pin."""
    with operators(entry.places) as client:
        known = client.call(client.stub.ListVcenters, operator_pb2.Empty()).vcenters
        if any(row.name == name for row in known):
            note(f"{name} is known: its address, account and certificate are replaced")
        shown = client.call(
            client.stub.ShowVcenterCertificate, operator_pb2.VcenterAddress(url=url)
        )
        expected = certificate_sha256.replace(":", "").lower()
        if expected and expected != shown.sha256:
            raise Refused(
                "the server shows another certificate than the one you expect; nothing was sent",
                shown=shown.sha256,
                expected=expected,
            )
        if not expected:
            note(f"{shown.subject}, valid until {shown.not_after}")
            note(f"SHA-256 {shown.sha256}")
            click.confirm("Is this the right certificate?", abort=True, err=True)
        password = _password(password_file)
        added = client.call(
            client.stub.AddVcenter,
            operator_pb2.AddVcenterRequest(
                name=name,
                url=url,
                user=user,
                password=password,
                certificate_sha256=shown.sha256,
            ),
        )
    if output.as_json:
        output.document("vcenter", added)
        return
    output.line(f"{added.name}: {added.kind} {added.version}, {added.vms} VMs; certificate pinned")


def _password(file: Path | None) -> bytes:
    if file is None:
        typed: str = click.prompt("Password", hide_input=True, err=True)
        return typed.encode()
    lines = file.read_bytes().splitlines()
    if not lines or not lines[0]:
        raise UsageError("the password file is empty", file=str(file))
    return lines[0]


@vcenter.command("list")
@json_option
@pass_entry
def list_vcenters(entry: Entry, *, output: Output) -> None:
    """All vCenters."""
    with operators(entry.places) as client:
        reply = client.call(client.stub.ListVcenters, operator_pb2.Empty())
    if output.as_json:
        output.document("vcenters", reply)
        return
    output.table(
        ["NAME", "KIND", "VERSION", "URL", "USER", "VMS", "REFRESHED", "PROBLEM"],
        [
            [
                row.name,
                row.kind,
                row.version,
                row.url,
                row.user,
                str(row.vms),
                row.refreshed_at[:19],
                row.problem,
            ]
            for row in reply.vcenters
        ],
    )


@vcenter.command()
@click.argument("name")
@json_option
@pass_entry
@click.pass_context
def test(context: click.Context, entry: Entry, *, name: str, output: Output) -> None:
    """Log in, and look at certificate, rights and clock."""
    with operators(entry.places) as client:
        reply = client.call(
            client.stub.TestVcenter,
            operator_pb2.VcenterName(name=name),
            timeout_seconds=LOOK_TIMEOUT_SECONDS,
        )
    if output.as_json:
        output.document("checks", reply)
    context.exit(show_checks(list(reply.checks), output))


@vcenter.command()
@click.argument("name")
@json_option
@pass_entry
def refresh(entry: Entry, *, name: str, output: Output) -> None:
    """Read the whole inventory again."""
    with operators(entry.places) as client:
        reply = client.call(client.stub.RefreshVcenter, operator_pb2.VcenterName(name=name))
    if output.as_json:
        output.document("inventory", reply)
        return
    output.line(
        f"{name}: {reply.vms} VMs on {reply.hosts} hosts and {reply.datastores} datastores"
        f" in {reply.duration_seconds:.1f} s"
    )
    if reply.tags_problem:
        note(f"{name}: the tags of its VMs could not be read: {reply.tags_problem}")
