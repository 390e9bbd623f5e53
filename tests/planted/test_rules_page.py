"""The page of rules tells the truth: every rule, every test it names, every patch."""

from __future__ import annotations

import ast
from functools import cache

import pytest

from support.planting import (
    PROJECT,
    RULES,
    RULES_PAGE,
    Rule,
    applies,
    patches,
    rules_of_the_page,
)


def test_every_rule_stands_once_on_the_page_and_in_order() -> None:
    assert [rule.number for rule in rules_of_the_page()] == list(RULES)


@pytest.mark.parametrize("rule", rules_of_the_page(), ids=lambda rule: f"{rule.number:02}")
def test_a_rule_has_tests_or_a_reason_why_it_comes_later(rule: Rule) -> None:
    assert bool(rule.tests) != bool(rule.later)
    assert rule.later == "" or len(rule.later) > 20, "a reason, not a word"


def test_every_test_that_the_page_names_exists() -> None:
    missing = [
        test
        for rule in rules_of_the_page()
        for test in rule.tests
        if test.partition("::")[2] not in functions_of(test.partition("::")[0])
    ]
    assert not missing


def test_every_module_that_the_page_names_exists() -> None:
    text = RULES_PAGE.read_text(encoding="utf-8")
    paths = {word for word in text.replace("`", " ").split() if word.startswith(PACKAGES)}
    assert paths
    assert [path for path in sorted(paths) if not (PROJECT / path).exists()] == []


def test_every_rule_that_is_met_has_one_patch_that_breaks_it() -> None:
    assert sorted(patches()) == [rule.number for rule in rules_of_the_page() if rule.tests]


@pytest.mark.parametrize("number", sorted(patches()))
def test_a_patch_still_applies(number: int) -> None:
    assert applies(patches()[number], PROJECT) == ""


PACKAGES = ("common/", "agent/", "controller/")


@cache
def functions_of(path: str) -> frozenset[str]:
    """The test functions of a file, those of classes too; none when there is no such file."""
    file = PROJECT / path
    if not file.exists():
        return frozenset()
    tree = ast.parse(file.read_text(encoding="utf-8"))
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, kinds))
