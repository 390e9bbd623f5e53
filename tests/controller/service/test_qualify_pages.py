"""A qualification as operators see it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast_common.wire import operator_pb2
from holdfast_controller.commands.qualify import report_lines
from holdfast_controller.service.qualify_pages import QualifyPages
from holdfast_lab.inventory_plan import DiskPlan, InventoryPlan, MachinePlan
from holdfast_lab.server import running_lab
from support.one_process import OneProcess, one_process


@pytest.fixture
def holdfast(tmp_path: Path) -> Iterator[OneProcess]:
    spare = MachinePlan(name="spare", datastore="nfs1", disks=(DiskPlan(size_bytes=1 << 20),))
    plan = InventoryPlan(machines=(spare, MachinePlan(name="proxy", datastore="vmfs1")))
    with (
        running_lab(tmp_path / "lab", inventory=plan) as lab,
        one_process(tmp_path / "holdfast", lab) as ready,
    ):
        yield ready


def pages(holdfast: OneProcess, *, dry_run: bool) -> QualifyPages:
    request = operator_pb2.QualifyRequest(vm="spare", dry_run=dry_run)
    return QualifyPages(holdfast.world, holdfast.engine, request)


def test_a_dry_run_tells_what_would_be_done_and_does_nothing(holdfast: OneProcess) -> None:
    request = operator_pb2.QualifyRequest()
    made = pages(holdfast, dry_run=True)
    page = made.next_page(request)
    assert page is not None and len(page.plan) == 4
    assert made.next_page(request) is None
    made.close()
    assert not holdfast.world.jobs.latest(limit=10)


def test_one_that_nobody_waits_for_any_more_forgets_its_points(holdfast: OneProcess) -> None:
    request = operator_pb2.QualifyRequest()
    made = pages(holdfast, dry_run=False)
    while (page := made.next_page(request)) is not None and "audited" not in page.step:
        assert not page.HasField("report")
    assert len(holdfast.world.catalogue.points()) == 1
    made.close()
    assert made.next_page(request) is None
    assert not holdfast.world.catalogue.points() and not holdfast.world.ledger.open_entries()


def test_the_report_names_the_server_the_host_and_each_verdict() -> None:
    report = operator_pb2.QualifyReport(
        vm="spare",
        vcenter="lab",
        product="vCenter",
        version="8",
        build="1",
        hosts=["esx1: 8.0.1 build 2"],
        findings=[operator_pb2.Finding(behaviour="it works", verdict="holds", detail="once")],
    )
    text = "\n".join(report_lines(report))
    assert "vCenter 8 build 1, tried with spare" in text and "host esx1: 8.0.1 build 2" in text
    assert "holds     it works (once)" in text
