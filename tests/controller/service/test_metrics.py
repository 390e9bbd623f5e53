"""What Prometheus reads: against a real backup, at 10,000 VMs, and beside the page that explains it."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from holdfast_controller.ledger import EntryKind
from holdfast_controller.runs.figures import AGE_HOURS, FigureBook
from holdfast_controller.runs.repository_space import SpaceWatch
from holdfast_controller.service.metrics import METRICS, MetricsText
from holdfast_controller.store.policies import PolicyChange
from holdfast_lab.server import RunningLab
from support.many_vms import add_points, add_vcenter, add_vms, nightly
from support.one_process import OneProcess, one_process
from support.policies import policy

PAGE = Path(__file__).parents[3] / "docs" / "metrics.md"
SERIES_MAX = 250  # whatever there is to count


@pytest.fixture(scope="module")
def holdfast(tmp_path_factory: pytest.TempPathFactory, lab: RunningLab) -> Iterator[OneProcess]:
    """One for all tests here, which compare before and after, or look at what they made."""
    with one_process(tmp_path_factory.mktemp("holdfast"), lab) as ready:
        yield ready


class Scrape:
    """One answer, parsed by Prometheus' own reader."""

    def __init__(self, text: bytes) -> None:
        self.values: dict[tuple[str, frozenset[str]], float] = {}
        for family in text_string_to_metric_families(text.decode()):
            for sample in family.samples:
                self.values[sample.name, frozenset(sample.labels.values())] = sample.value

    def of(self, name: str, *labels: str) -> float:
        return self.values[f"holdfast_{name}", frozenset(labels)]


def book_of(holdfast: OneProcess) -> tuple[FigureBook, SpaceWatch]:
    space = SpaceWatch(holdfast.world)
    return FigureBook(holdfast.world, space), space


def test_a_backup_shows_in_every_figure_that_it_concerns(holdfast: OneProcess) -> None:
    book, space = book_of(holdfast)
    text = MetricsText()
    space.look()
    before = Scrape(text.of(book.gather()))
    assert before.of("vms") >= 2
    assert before.of("agents", "proxy", "away") + before.of("agents", "proxy", "connected") == 1
    assert before.of("repository_free_bytes") > 0
    assert before.of("last_check_timestamp_seconds") == 0
    job = holdfast.back_up("web")
    after = Scrape(text.of(book.gather()))

    def more(name: str, *labels: str) -> float:
        return after.of(name, *labels) - before.of(name, *labels)

    assert more("vms_without_good_point") == -1
    assert more("vms_without_good_point_within", "26") == -1
    assert more("points") == 1
    assert more("jobs_ended_total", "backup", "done") == 1
    assert more("read_bytes_total", "backup") == sum(disk.read_bytes for disk in job.disks) > 0
    assert more("stored_bytes_total", "backup") > 0
    assert after.of("jobs", "backup", "transferring") == 0
    assert after.of("jobs_waiting") == 0
    assert after.of("oldest_good_point_seconds") > 0


def test_a_debt_shows_with_its_age(holdfast: OneProcess) -> None:
    ledger = holdfast.forgotten_ledger()
    entry = ledger.intend(EntryKind.HOT_ADD, {"vm_name": "web"})
    holdfast.world.ledger.debt(entry, "the host is away")
    book, _ = book_of(holdfast)
    found = Scrape(MetricsText().of(book.gather()))
    assert found.of("debts", "hot_add") == 1
    assert 0 <= found.of("debts_oldest_seconds", "hot_add") < 600
    holdfast.world.ledger.gone(entry)


def test_what_is_not_known_has_no_sample(holdfast: OneProcess) -> None:
    book, _ = book_of(holdfast)  # nobody has looked at the repository's file system
    names = {name for name, _ in Scrape(MetricsText().of(book.gather())).values}
    assert "holdfast_repository_free_bytes" not in names
    assert "holdfast_points" in names


def test_the_page_explains_every_metric_and_no_other(holdfast: OneProcess) -> None:
    explained = set(re.findall(r"(?m)^\| `(holdfast_\w+)", PAGE.read_text()))
    book, space = book_of(holdfast)
    space.look()
    ledger = holdfast.forgotten_ledger()
    holdfast.world.ledger.debt(ledger.intend(EntryKind.SNAPSHOT, {}), "away")
    shown = {name for name, _ in Scrape(MetricsText().of(book.gather())).values}
    assert explained == {name for name in shown if name.startswith("holdfast_")}
    assert len(explained) == len(METRICS)


def many(holdfast: OneProcess, numbers: range, *, nights: int) -> None:
    """VMs, half of them with a point a night, the newest 30 hours old."""
    database = holdfast.world.jobs._database
    now = holdfast.world.clock.now()
    add_vcenter(database)
    add_vms(database, numbers, taken_at=now)
    add_points(database, nightly(numbers[::2], newest=now - timedelta(hours=30), nights=nights))


def test_there_are_as_many_series_with_many_vms_as_with_few(holdfast: OneProcess) -> None:
    book, space = book_of(holdfast)
    space.look()
    few = Scrape(MetricsText().of(book.gather()))
    many(holdfast, range(500), nights=2)
    promising = PolicyChange(policy=policy(vms=("vm*",), promise="26h"))
    holdfast.world.policies.change([promising], actor="me")
    found = Scrape(MetricsText().of(book.gather()))
    assert found.of("vms_promised") == 500
    assert found.of("vms_late") == 250  # those without any point count from the policy on
    assert found.of("vms_without_policy") == few.of("vms_without_policy")
    assert set(found.values) == set(few.values)
    assert len(found.values) <= SERIES_MAX
    assert found.of("vms") - few.of("vms") == 500
    older = [
        found.of("vms_without_good_point_within", str(hours))
        - few.of("vms_without_good_point_within", str(hours))
        for hours in AGE_HOURS
    ]
    assert older == [500, 500, 500, 500, 250, 250, 250, 250]  # 30 hours
    assert found.of("vms_without_good_point") - few.of("vms_without_good_point") == 250
    labels = {label for _, found_labels in found.values for label in found_labels}
    assert not any("vm0" in label or label in ("web", "lab", "main") for label in labels)


@pytest.mark.long
def test_ten_thousand_vms_with_points_of_a_month_cost_little(holdfast: OneProcess) -> None:
    many(holdfast, range(1000, 11_000), nights=60)
    book, space = book_of(holdfast)
    space.look()
    text = MetricsText()
    promising = PolicyChange(policy=policy("silver", vms=("vm*", "folder:/none"), promise="1d"))
    holdfast.world.policies.change([promising], actor="me")
    began = time.process_time()
    book.gather()
    first = time.process_time() - began
    began = time.process_time()
    found = Scrape(text.of(book.gather()))
    cost = time.process_time() - began
    assert found.of("points") >= 300_000
    print(
        "figures of 10,000 VMs and 300,000 points:"
        f" {cost:.2f} CPU seconds, {first:.2f} when VMs and policies are looked at anew"
    )
    assert cost < 2.0
    assert first < 8.0
