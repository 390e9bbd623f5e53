"""A controller takes the open files that the machine allows, whatever the shell says."""

from __future__ import annotations

import resource
from collections.abc import Iterator

import pytest

from holdfast_controller.service.open_files import OPEN_FILES_WANTED, allow_many_open_files


@pytest.fixture(name="most")
def a_low_limit() -> Iterator[int]:
    allowed, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, most))
    yield most
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, most))


def test_a_shells_limit_is_raised_to_what_a_thousand_agents_need(most: int) -> None:
    possible = OPEN_FILES_WANTED if most == resource.RLIM_INFINITY else min(most, OPEN_FILES_WANTED)
    assert allow_many_open_files() == possible
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (possible, most)


@pytest.mark.usefixtures("most")
def test_a_limit_that_is_higher_already_stays() -> None:
    first = allow_many_open_files()
    assert allow_many_open_files() == first
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == first
