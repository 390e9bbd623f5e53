"""Commands of ``holdfast-lab`` about tags."""

from __future__ import annotations

from pathlib import Path

import click

from holdfast_lab.cli_output import give, json_option, state_option

KINDS = ("vm", "folder", "host", "datastore", "datacenter", "cluster", "pool")
kind_option = click.option(
    "--kind", type=click.Choice(KINDS), default="vm", show_default=True, help="What NAME is."
)


@click.group("tag")
def tag() -> None:
    """Tags and their categories, as clients read them over REST."""


@tag.command("category")
@click.argument("name")
@click.option("--single", is_flag=True, help="An object carries at most one tag of it.")
@click.option("--for", "types", multiple=True, metavar="TYPE", help="VirtualMachine, Folder, …")
@state_option
@json_option
def add_category(
    name: str, *, single: bool, types: tuple[str, ...], state: Path, as_json: bool
) -> None:
    """Make a category; without --for its tags fit everything."""
    give(state, "tag-category-add", as_json=as_json, name=name, single=single, types=list(types))


@tag.command("add")
@click.argument("category")
@click.argument("name")
@state_option
@json_option
def add_tag(category: str, name: str, *, state: Path, as_json: bool) -> None:
    """Make a tag in a category."""
    give(state, "tag-add", as_json=as_json, category=category, name=name)


@tag.command("rename")
@click.argument("tag")
@click.argument("to")
@state_option
@json_option
def rename_tag(tag: str, to: str, *, state: Path, as_json: bool) -> None:
    """Give a tag another name; a tag is NAME or CATEGORY/NAME."""
    give(state, "tag-rename", as_json=as_json, tag=tag, to=to)


@tag.command("remove")
@click.argument("tag")
@state_option
@json_option
def remove_tag(tag: str, *, state: Path, as_json: bool) -> None:
    """Remove a tag."""
    give(state, "tag-remove", as_json=as_json, tag=tag)


@tag.command("attach")
@click.argument("tag")
@click.argument("name")
@kind_option
@state_option
@json_option
def attach(tag: str, name: str, *, kind: str, state: Path, as_json: bool) -> None:
    """Attach a tag to a VM, a folder, a host and so on."""
    give(state, "tag-attach", as_json=as_json, tag=tag, name=name, kind=kind)


@tag.command("detach")
@click.argument("tag")
@click.argument("name")
@kind_option
@state_option
@json_option
def detach(tag: str, name: str, *, kind: str, state: Path, as_json: bool) -> None:
    """Take a tag off."""
    give(state, "tag-detach", as_json=as_json, tag=tag, name=name, kind=kind)


@tag.command("list")
@state_option
@json_option
def list_tags(*, state: Path, as_json: bool) -> None:
    """Every tag and what carries it."""
    give(state, "tag-list", as_json=as_json)


TAG_COMMANDS = (tag,)
