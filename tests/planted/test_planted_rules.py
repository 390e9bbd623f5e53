"""Every rule is broken on purpose in a copy of the product, and its own tests must notice. See docs/rules.md."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from support.planting import copied_product, patches, plant, rules_of_the_page, run_tests
from support.planting_summary import PROPERTY

PARTS = 6  # so that several processes share it
pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]


@pytest.fixture(scope="session")
def product(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One copy for each process of the test run, to be copied again for each patch."""
    return copied_product(tmp_path_factory.mktemp("planted") / "product")


@pytest.mark.parametrize("part", range(PARTS))
def test_an_unbroken_copy_passes_the_same_tests(part: int, product: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(product, copy)
    tests = dict.fromkeys(test for rule in rules_of_the_page() for test in rule.tests)
    chosen = tuple(tests)[part::PARTS]
    run = run_tests(copy, chosen, stop_at_first=False)
    shutil.rmtree(copy)
    assert run.status == 0, run.told()
    assert run.passed >= len(chosen), run.told()


@pytest.mark.parametrize("number", sorted(patches()))
def test_a_broken_rule_is_noticed_by_its_own_tests(
    number: int, product: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    record_property(PROPERTY, f"{number:02}")
    copy = tmp_path / "copy"
    shutil.copytree(product, copy)
    plant(patches()[number], copy)
    (tests,) = [rule.tests for rule in rules_of_the_page() if rule.number == number]
    run = run_tests(copy, tests)
    shutil.rmtree(copy)
    assert run.caught, f"rule {number} is broken, and no test fails: {run.told()}"
