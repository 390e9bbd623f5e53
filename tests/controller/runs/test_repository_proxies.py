"""Which proxy checks or mends the repository: the one that is named, or one that can."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from holdfast_common.errors import Refused
from holdfast_common.identity import AgentId, RepositoryId
from holdfast_common.listed_folders import is_listed
from holdfast_controller.runs.check_points import CheckPoints
from holdfast_controller.runs.repair_points import RepairPoints
from holdfast_controller.runs.requests import CheckRequest, RepairRequest
from holdfast_lab.inventory_plan import InventoryPlan, MachinePlan
from holdfast_lab.server import running_lab
from support.one_process import OneProcess, one_process


@pytest.fixture(scope="module")
def holdfast(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OneProcess]:
    folder: Path = tmp_path_factory.mktemp("proxies")
    machines = (MachinePlan(name="proxy", datastore="nfs1", disks=()),)
    inventory = replace(InventoryPlan.empty(), machines=machines)
    with (
        running_lab(folder / "lab", inventory=inventory) as lab,
        one_process(folder / "holdfast", lab) as ready,
    ):
        yield ready


@pytest.fixture
def proxies(holdfast: OneProcess, monkeypatch: pytest.MonkeyPatch) -> OneProcess:
    """``first`` lists no folder, ``second`` /copies, ``elsewhere`` does not reach the repository."""
    agent = holdfast.agent.agent

    def named(name: str, **changes: object) -> object:
        made = replace(agent, agent_id=AgentId(f"id-{name}"), host_name=name, repair_folders=())
        return replace(made, **changes)  # type: ignore[arg-type]  # names are the test's business

    connected = [
        named("first"),
        named("second", repair_folders=("/copies",)),
        named("elsewhere", repositories=(RepositoryId("another"),), repair_folders=("/copies",)),
        named("twin"),
        named("twin", agent_id=AgentId("id-other-twin")),
    ]
    monkeypatch.setattr(holdfast.agent, "connected", lambda: connected)
    return holdfast


def who_repairs(holdfast: OneProcess, folder: str = "", agent: str = "") -> str:
    request = RepairRequest(source_folder=folder, agent=agent)
    return RepairPoints(holdfast.world, request).plan()[0].rpartition(" on ")[2]


def who_checks(holdfast: OneProcess, agent: str = "") -> str:
    request = CheckRequest(read_data=True, agent=agent)
    return CheckPoints(holdfast.world, request).plan()[0].rpartition(" on ")[2]


def test_a_repair_goes_to_a_proxy_that_lists_the_folder(proxies: OneProcess) -> None:
    assert who_repairs(proxies) == "first"
    assert who_repairs(proxies, "/copies/a") == "second"


def test_when_none_lists_the_folder_all_proxies_are_named_and_nothing_is_begun(
    proxies: OneProcess,
) -> None:
    jobs = len(proxies.world.jobs.latest())
    with pytest.raises(Refused) as caught:
        proxies.engine.start_repair(RepairRequest(source_folder="/mnt/copy"))
    told = str(caught.value)
    assert "first lists none; second lists /copies" in told
    assert "elsewhere" not in told
    assert "--agent" in caught.value.advice
    assert "agent.toml" in caught.value.advice
    assert len(proxies.world.jobs.latest()) == jobs


def test_a_proxy_that_is_named_is_taken_by_id_or_host_name(proxies: OneProcess) -> None:
    for name in ("second", "id-second"):
        assert who_repairs(proxies, agent=name) == "second"
        assert who_checks(proxies, agent=name) == "second"
    assert who_repairs(proxies, "/mnt/copy", agent="first") == "first", "it judges by itself"
    assert who_checks(proxies) == "first"


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("nosuch", "no such agent"),
        ("elsewhere", "no proxy that reaches"),
        ("twin", "more than one"),
    ],
)
def test_a_name_that_fits_no_proxy_or_two_is_refused_and_nothing_is_begun(
    proxies: OneProcess, name: str, problem: str
) -> None:
    jobs = len(proxies.world.jobs.latest())
    with pytest.raises(Refused, match=problem) as repair:
        proxies.engine.start_repair(RepairRequest(agent=name))
    with pytest.raises(Refused, match=problem) as check:
        proxies.engine.start_check(CheckRequest(read_data=False, agent=name))
    assert "agent list" in repair.value.advice
    assert "agent list" in check.value.advice
    assert len(proxies.world.jobs.latest()) == jobs


@pytest.mark.parametrize(
    ("folder", "listed", "expected"),
    [
        ("/copies", ("/copies",), True),
        ("/copies/a/b", ("/x", "/copies"), True),
        ("/copies-not", ("/copies",), False),
        ("/copies/../x", ("/copies",), False),
        ("copies", ("copies",), False),
        ("/copies", (), False),
    ],
)
def test_a_folder_is_listed_by_its_text(
    folder: str, listed: tuple[str, ...], expected: bool
) -> None:
    assert is_listed(folder, listed) is expected
