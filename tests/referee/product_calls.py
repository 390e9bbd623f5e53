"""Every vSphere method that the product calls, collected from its source and not from a list.

A method's name on the wire is a text in the code: whatever text in the product's dealings with
vSphere is the name of a method of the interface counts as called, so a new call cannot hide.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from pyVmomi import VmomiSupport

import holdfast_controller

FOLDERS: Final = ("vsphere", "runs")
# A set that says which calls may be repeated makes none.
NO_CALLS_IN: Final = frozenset({"REPEATABLE"})


def calls_of_the_product() -> Mapping[str, tuple[str, ...]]:
    """Method -> the modules that name it, both in order."""
    root = Path(str(holdfast_controller.__file__)).parent
    found: dict[str, list[str]] = {}
    for path in sorted(path for folder in FOLDERS for path in (root / folder).rglob("*.py")):
        module = str(path.relative_to(root))
        for text in texts_of(path.read_text(encoding="utf-8")):
            if is_method(text):
                found.setdefault(text, []).append(module)
    return {method: tuple(modules) for method, modules in sorted(found.items())}


def texts_of(source: str) -> set[str]:
    """The texts in a module's code, without docstrings and the sets that make no calls."""
    tree = ast.parse(source)
    left_out = {
        id(inner)
        for node in ast.walk(tree)
        for part in _without_calls(node)
        for inner in ast.walk(part)
    }
    return {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and id(node) not in left_out
    }


def is_method(text: str) -> bool:
    """Whether a text is the wire name of a method that pyVmomi knows."""
    if not text.isidentifier() or not text[0].isupper():
        return False
    try:
        VmomiSupport.GuessWsdlMethod(text)
    except (AttributeError, KeyError):
        return False
    return True


def _without_calls(node: ast.AST) -> Iterator[ast.AST]:
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        yield node
    target = node.target if isinstance(node, ast.AnnAssign) else None
    if isinstance(target, ast.Name) and target.id in NO_CALLS_IN:
        yield node
