"""All cases: what the product does with each vSphere call, done with govmomi's simulator."""

from __future__ import annotations

from typing import Final

from referee import cases_of_reading, cases_of_tags, cases_of_writing
from referee.case_table import CASES, Case

MODULES: Final = (
    cases_of_reading,
    cases_of_tags,
    cases_of_writing,
)  # importing them registers their cases


def all_cases() -> tuple[Case, ...]:
    """In the order of the modules."""
    assert all(module.__name__ for module in MODULES)
    return tuple(CASES)


def covered_methods() -> frozenset[str]:
    """Every call that has a case."""
    return frozenset(method for each in all_cases() for method in each.methods)
