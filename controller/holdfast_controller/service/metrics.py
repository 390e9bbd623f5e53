"""Figures as Prometheus reads them. ``METRICS`` is the list of all; docs/metrics.md says what they are good for.

Labels have few values, all of them ours: kinds, states, roles, hours. No name of a VM, a vCenter or an agent is ever one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from typing import Final

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from holdfast_common.clock import parse_utc
from holdfast_controller.decide.job_state import ENDED, JobState
from holdfast_controller.runs.figures import Figures

KINDS: Final = ("backup", "restore", "check", "repair", "prune")
ROLES: Final = ("proxy",)
Sample = tuple[Sequence[str], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricKind:
    """One metric. A counter's name is shown with ``_total``, and begins with 0 at each start."""

    name: str
    help: str
    samples: Callable[[Figures], Iterable[Sample]]
    labels: tuple[str, ...] = ()
    is_counter: bool = False

    def family(self, figures: Figures) -> Metric:
        """Its samples now."""
        kind = CounterMetricFamily if self.is_counter else GaugeMetricFamily
        family = kind(self.name, self.help, labels=self.labels)
        for labels, value in self.samples(figures):
            family.add_metric(labels, value)
        return family


class FiguresCollector(Collector):
    """Whatever the last figures were. One thread."""

    def __init__(self) -> None:
        self.figures: Figures | None = None

    def collect(self) -> Iterator[Metric]:
        """All families; none before there are figures."""
        if self.figures is not None:
            for metric in METRICS:
                yield metric.family(self.figures)


class MetricsText:
    """Turns figures into the text of one answer. One thread."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._collector = FiguresCollector()
        self._registry.register(self._collector)
        ProcessCollector(registry=self._registry)

    def of(self, figures: Figures) -> bytes:
        """The text format, version 0.0.4."""
        self._collector.figures = figures
        return generate_latest(self._registry)


def _one(value: Callable[[Figures], float], figures: Figures) -> Iterator[Sample]:
    yield (), value(figures)


def _build(_: Figures) -> Iterator[Sample]:
    yield (version("holdfast-controller"),), 1.0


def _jobs(figures: Figures) -> Iterator[Sample]:
    found = {(each.kind, str(each.state)): float(each.jobs) for each in figures.unfinished}
    wanted = {(kind, str(state)): 0.0 for kind in KINDS for state in JobState if state not in ENDED}
    yield from (wanted | found).items()


def _job_bytes(figures: Figures) -> Iterator[Sample]:
    done = dict.fromkeys(KINDS, 0)
    for each in figures.unfinished:
        done[each.kind] = done.get(each.kind, 0) + each.done_bytes
    yield from (((kind,), value) for kind, value in done.items())


def _waiting(figures: Figures) -> float:
    return sum(
        each.jobs
        for each in figures.unfinished
        if each.state in (JobState.PLANNED, JobState.QUEUED)
    )


def _ended(figures: Figures) -> Iterator[Sample]:
    wanted = {(kind, str(state)): 0 for kind in KINDS for state in ENDED}
    yield from sorted((wanted | dict(figures.ended.jobs)).items())


def _by_kind(name: str, figures: Figures) -> Iterator[Sample]:
    found: dict[str, int] = getattr(figures.ended, name)
    yield from (((kind,), value) for kind, value in (dict.fromkeys(KINDS, 0) | found).items())


def _older(figures: Figures) -> Iterator[Sample]:
    yield from (((str(hours),), vms) for hours, vms in figures.vms.older.items())


def _debts(figures: Figures) -> Iterator[Sample]:
    yield from (((each.kind,), each.debts) for each in figures.debts)


def _debt_ages(figures: Figures) -> Iterator[Sample]:
    yield from (((each.kind,), each.oldest_seconds) for each in figures.debts)


def _agents(figures: Figures) -> Iterator[Sample]:
    states = ("connected", "away", "revoked")
    wanted = {(role, state): 0 for role in ROLES for state in states}
    yield from (wanted | dict(figures.agents)).items()


def _vcenters(figures: Figures) -> Iterator[Sample]:
    yield from (((state,), vcenters) for state, vcenters in figures.vcenters.items())


def _space(name: str, figures: Figures) -> Iterator[Sample]:
    space = figures.repository.space
    if space is not None:
        yield (), getattr(space, name)


def _space_at(figures: Figures) -> Iterator[Sample]:
    space = figures.repository.space
    if space is not None:
        yield (), parse_utc(space.measured_at).timestamp()


def _messages(figures: Figures) -> Iterator[Sample]:
    yield ("waiting",), figures.messages_waiting
    yield ("given_up",), figures.messages_given_up


METRICS: Final = (
    MetricKind(
        name="holdfast_build_info",
        help="The version, always 1.",
        samples=_build,
        labels=("version",),
    ),
    MetricKind(
        name="holdfast_jobs",
        help="Jobs that have not ended, by kind and state.",
        samples=_jobs,
        labels=("kind", "state"),
    ),
    MetricKind(
        name="holdfast_jobs_done_bytes",
        help="What the jobs that have not ended have got through so far.",
        samples=_job_bytes,
        labels=("kind",),
    ),
    MetricKind(
        name="holdfast_jobs_waiting",
        help="Jobs that have not begun.",
        samples=partial(_one, _waiting),
    ),
    MetricKind(
        name="holdfast_jobs_waiting_oldest_seconds",
        help="How long the oldest job that has not begun waits; 0: none does.",
        samples=partial(_one, lambda figures: figures.waiting_seconds),
    ),
    MetricKind(
        name="holdfast_jobs_ended",
        help="Jobs that ended since the controller started, by kind and outcome.",
        samples=_ended,
        labels=("kind", "outcome"),
        is_counter=True,
    ),
    MetricKind(
        name="holdfast_job_warnings",
        help="Warnings of the jobs that ended since the controller started.",
        samples=partial(_by_kind, "warnings"),
        labels=("kind",),
        is_counter=True,
    ),
    MetricKind(
        name="holdfast_read_bytes",
        help="What ended jobs read from disks of VMs, or from the repository.",
        samples=partial(_by_kind, "read_bytes"),
        labels=("kind",),
        is_counter=True,
    ),
    MetricKind(
        name="holdfast_stored_bytes",
        help="What ended jobs added to the repository.",
        samples=partial(_by_kind, "stored_bytes"),
        labels=("kind",),
        is_counter=True,
    ),
    MetricKind(
        name="holdfast_written_bytes",
        help="What ended restores wrote to disks.",
        samples=partial(_by_kind, "written_bytes"),
        labels=("kind",),
        is_counter=True,
    ),
    MetricKind(
        name="holdfast_vms",
        help="VMs of the inventory.",
        samples=partial(_one, lambda figures: figures.vms.vms),
    ),
    MetricKind(
        name="holdfast_vms_without_good_point",
        help="VMs of the inventory that have no good point at all.",
        samples=partial(_one, lambda figures: figures.vms.without),
    ),
    MetricKind(
        name="holdfast_vms_without_good_point_within",
        help="VMs of the inventory that have no good point as young as so many hours.",
        samples=_older,
        labels=("hours",),
    ),
    MetricKind(
        name="holdfast_oldest_good_point_seconds",
        help="Age of the newest good point of the VM whose newest is the oldest; VMs without one do not count.",
        samples=partial(_one, lambda figures: figures.vms.oldest_seconds),
    ),
    MetricKind(
        name="holdfast_vms_without_policy",
        help="VMs of the inventory that no policy covers.",
        samples=partial(_one, lambda figures: figures.vms.uncovered),
    ),
    MetricKind(
        name="holdfast_vms_promised",
        help="VMs for which a policy promises how old their newest good point may be.",
        samples=partial(_one, lambda figures: figures.vms.promised),
    ),
    MetricKind(
        name="holdfast_vms_late",
        help="Those of them whose promise is broken.",
        samples=partial(_one, lambda figures: figures.vms.late),
    ),
    MetricKind(
        name="holdfast_unprotected_bytes",
        help="Capacity of disks that no snapshot holds: physical RDM, independent, shared.",
        samples=partial(_one, lambda figures: figures.vms.unprotected_bytes),
    ),
    MetricKind(
        name="holdfast_debts",
        help="What of ours is still at a vCenter and could not be undone, by kind; no sample of a kind: none.",
        samples=_debts,
        labels=("kind",),
    ),
    MetricKind(
        name="holdfast_debts_oldest_seconds",
        help="Age of the oldest debt of a kind.",
        samples=_debt_ages,
        labels=("kind",),
    ),
    MetricKind(
        name="holdfast_vms_tracking_doubted",
        help="VMs whose change tracking was caught leaving something out and has not begun anew.",
        samples=partial(_one, lambda figures: figures.vms_doubted),
    ),
    MetricKind(
        name="holdfast_agents",
        help="Agents, by role and whether they are connected.",
        samples=_agents,
        labels=("role", "state"),
    ),
    MetricKind(
        name="holdfast_vcenters",
        help="vCenters, by whether the last thing asked of them went well.",
        samples=_vcenters,
        labels=("state",),
    ),
    MetricKind(
        name="holdfast_inventory_read_timestamp_seconds",
        help="When the inventory was read that is the oldest; 0: one never was.",
        samples=partial(_one, lambda figures: figures.inventory_read_at),
    ),
    MetricKind(
        name="holdfast_repository_free_bytes",
        help="Free room of the repository's file system, as last seen; no sample: not known.",
        samples=partial(_space, "free_bytes"),
    ),
    MetricKind(
        name="holdfast_repository_capacity_bytes",
        help="Size of the repository's file system, as last seen; no sample: not known.",
        samples=partial(_space, "capacity_bytes"),
    ),
    MetricKind(
        name="holdfast_repository_seen_timestamp_seconds",
        help="When its file system last answered: looked at once a minute.",
        samples=_space_at,
    ),
    MetricKind(
        name="holdfast_points",
        help="Restore points.",
        samples=partial(_one, lambda figures: figures.repository.points),
    ),
    MetricKind(
        name="holdfast_points_in_doubt",
        help="Restore points that may lack what change tracking did not tell.",
        samples=partial(_one, lambda figures: figures.repository.points_in_doubt),
    ),
    MetricKind(
        name="holdfast_repository_damaged",
        help="1 while the last check that came to an end found damage.",
        samples=partial(_one, lambda figures: float(figures.repository.is_damaged)),
    ),
    MetricKind(
        name="holdfast_last_prune_timestamp_seconds",
        help="When a prune last ended well; 0: never.",
        samples=partial(_one, lambda figures: figures.repository.pruned_at),
    ),
    MetricKind(
        name="holdfast_last_check_timestamp_seconds",
        help="When a check of the whole repository last found nothing; 0: never.",
        samples=partial(_one, lambda figures: figures.repository.checked_at),
    ),
    MetricKind(
        name="holdfast_last_data_check_timestamp_seconds",
        help="When a check that read data, all or a share of it, last found nothing; 0: never.",
        samples=partial(_one, lambda figures: figures.repository.data_checked_at),
    ),
    MetricKind(
        name="holdfast_last_database_copy_timestamp_seconds",
        help="When the controller's database was last copied into the repository; 0: never.",
        samples=partial(_one, lambda figures: figures.repository.database_copied_at),
    ),
    MetricKind(
        name="holdfast_notifications",
        help="Notifications that wait to be sent, and those of the latest thousand that were given up.",
        samples=_messages,
        labels=("state",),
    ),
)
