"""Every command that a message, the README or a page names exists, with the options that it names."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from holdfast_agent.main import holdfast_agent
from holdfast_controller.main import holdfast
from holdfast_lab.main import cli as holdfast_lab

PROJECT = Path(__file__).parents[3]
PROGRAMS: dict[str, click.Command] = {
    "holdfast": holdfast,
    "holdfast-agent": holdfast_agent,
    "holdfast-lab": holdfast_lab,
}
# Planned names: a message that advises one of these misleads.
PLANNED = {"policy", "repo", "proxy", "config", "plan", "why"}
NAMED = re.compile(
    r"(?<![\w/.`-])(holdfast(?:-agent|-lab)?) ([a-z][a-z-]+(?: [A-Za-z][\w-]*| --[\w-]+)*)"
)
QUOTED = re.compile(r"`([^`\n]+)`")


def texts_of_code(path: Path) -> Iterator[str]:
    """All texts of a module but its docstrings."""
    tree = ast.parse(path.read_text())
    documentation = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(
                str(part.value) if isinstance(part, ast.Constant) else "X" for part in node.values
            )
        elif (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and id(node) not in documentation
        ):
            yield node.value


def everything_that_is_told() -> Iterator[tuple[str, str]]:
    for folder in ("common", "agent", "controller"):
        for path in sorted((PROJECT / folder).rglob("*.py")):
            if "wire" not in path.parts:
                for text in texts_of_code(path):
                    yield str(path.relative_to(PROJECT)), text
    pages = ("README.md", "docs/rules.md", "docs/policies.md", "lab/README.md")
    for path in (PROJECT / page for page in pages):
        for line in path.read_text().splitlines():
            yield path.name, line


def named_commands(text: str) -> Iterator[tuple[str, list[str]]]:
    """Program and words of each command in a text; of a quoted one also when the program is left out."""
    for program, words in NAMED.findall(text):
        yield program, words.split()
    for quoted in QUOTED.findall(text):
        first, _, rest = quoted.partition(" ")
        if first in PROGRAMS:
            yield first, rest.split()
        elif first in PLANNED and rest:
            yield "holdfast", quoted.split()


def problem_of(program: str, words: list[str]) -> str:
    """What is wrong with a command; empty when a user could type it."""
    command = PROGRAMS[program]
    context = click.Context(command)
    for word in words:
        if word.startswith("--"):
            known = {name for each in command.params for name in each.opts + each.secondary_opts}
            if word.partition("=")[0] not in {*known, "--help", "--version"}:
                return f"{command.name} has no option {word}"
        elif isinstance(command, click.Group) and (word.islower() or "-" in word):
            found = command.get_command(context, word.strip("|.,;:"))
            if found is None:
                return f"{command.name} has no command {word}"
            command = found
    return ""


def test_every_command_that_is_named_exists() -> None:
    found = list(everything_that_is_told())
    commands = [
        (place, program, words)
        for place, text in found
        for program, words in named_commands(text)
        if words
    ]
    assert len(commands) > 40, "the texts are no longer found"
    wrong = [
        f"{place}: `{program} {' '.join(words)}`: {problem}"
        for place, program, words in commands
        if (problem := problem_of(program, words))
    ]
    assert wrong == []


@pytest.mark.parametrize(
    "text",
    [
        "run `holdfast repo mount`",
        "only `repo frobnicate` creates one",
        "see `holdfast agent dance`",
        "holdfast-agent configure --colour",
        "use `holdfast restore POINT vm --nowhere`",
    ],
)
def test_what_does_not_exist_is_noticed(text: str) -> None:
    assert any(problem_of(program, words) for program, words in named_commands(text))
