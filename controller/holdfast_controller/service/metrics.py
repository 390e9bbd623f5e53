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

KINDS: Final = ("backup", "restore", "check", "repair", "prune", "scrub", "forget")
ROLES: Final = ("proxy",)
Sample = tuple[Sequence[str], float]
Samples = Callable[[Figures], Iterable[Sample]]


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricKind:
    """One metric. A counter's name is shown with ``_total``, and begins with 0 at each start."""

    name: str
    help: str
    samples: Samples
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


def _gauge(name: str, told: str, samples: Samples, *labels: str) -> MetricKind:
    return MetricKind(name=name, help=told, samples=samples, labels=labels)


def _figure(name: str, told: str, value: Callable[[Figures], float]) -> MetricKind:
    """A gauge of one sample without labels."""
    return _gauge(name, told, lambda figures: [((), value(figures))])


def _counter(name: str, told: str, samples: Samples, *labels: str) -> MetricKind:
    return MetricKind(name=name, help=told, samples=samples, labels=labels, is_counter=True)


METRICS: Final = (
    _gauge("holdfast_build_info", "The version, always 1.", _build, "version"),
    _gauge("holdfast_jobs", "Jobs that have not ended, by kind and state.", _jobs, "kind", "state"),
    _gauge(
        "holdfast_jobs_done_bytes",
        "What the jobs that have not ended have got through so far.",
        _job_bytes,
        "kind",
    ),
    _figure("holdfast_jobs_waiting", "Jobs that have not begun.", _waiting),
    _figure(
        "holdfast_jobs_waiting_oldest_seconds",
        "How long the oldest job that has not begun waits; 0: none does.",
        lambda figures: figures.waiting_seconds,
    ),
    _counter(
        "holdfast_jobs_ended",
        "Jobs that ended since the controller started, by kind and outcome.",
        _ended,
        "kind",
        "outcome",
    ),
    _counter(
        "holdfast_job_warnings",
        "Warnings of the jobs that ended since the controller started.",
        partial(_by_kind, "warnings"),
        "kind",
    ),
    _counter(
        "holdfast_read_bytes",
        "What ended jobs read from disks of VMs, or from the repository.",
        partial(_by_kind, "read_bytes"),
        "kind",
    ),
    _counter(
        "holdfast_stored_bytes",
        "What ended jobs added to the repository.",
        partial(_by_kind, "stored_bytes"),
        "kind",
    ),
    _counter(
        "holdfast_written_bytes",
        "What ended restores wrote to disks.",
        partial(_by_kind, "written_bytes"),
        "kind",
    ),
    _figure("holdfast_vms", "VMs of the inventory.", lambda figures: figures.vms.vms),
    _figure(
        "holdfast_vms_without_good_point",
        "VMs of the inventory that have no good point at all.",
        lambda figures: figures.vms.without,
    ),
    _gauge(
        "holdfast_vms_without_good_point_within",
        "VMs of the inventory that have no good point as young as so many hours.",
        _older,
        "hours",
    ),
    _figure(
        "holdfast_oldest_good_point_seconds",
        "Age of the newest good point of the VM whose newest is the oldest; VMs without one do not count.",
        lambda figures: figures.vms.oldest_seconds,
    ),
    _figure(
        "holdfast_vms_without_policy",
        "VMs of the inventory that no policy covers.",
        lambda figures: figures.vms.uncovered,
    ),
    _figure(
        "holdfast_vms_promised",
        "VMs for which a policy promises how old their newest good point may be.",
        lambda figures: figures.vms.promised,
    ),
    _figure(
        "holdfast_vms_late",
        "Those of them whose promise is broken.",
        lambda figures: figures.vms.late,
    ),
    _figure(
        "holdfast_unprotected_bytes",
        "Capacity of disks that no snapshot holds: physical RDM, independent, shared.",
        lambda figures: figures.vms.unprotected_bytes,
    ),
    _gauge(
        "holdfast_debts",
        "What of ours is still at a vCenter and could not be undone, by kind; no sample of a kind: none.",
        _debts,
        "kind",
    ),
    _gauge(
        "holdfast_debts_oldest_seconds", "Age of the oldest debt of a kind.", _debt_ages, "kind"
    ),
    _figure(
        "holdfast_vms_tracking_doubted",
        "VMs whose change tracking was caught leaving something out and has not begun anew.",
        lambda figures: figures.vms_doubted,
    ),
    _gauge(
        "holdfast_agents",
        "Agents, by role and whether they are connected.",
        _agents,
        "role",
        "state",
    ),
    _gauge(
        "holdfast_vcenters",
        "vCenters, by whether the last thing asked of them went well.",
        _vcenters,
        "state",
    ),
    _figure(
        "holdfast_inventory_read_timestamp_seconds",
        "When the inventory was read that is the oldest; 0: one never was.",
        lambda figures: figures.inventory_read_at,
    ),
    _gauge(
        "holdfast_repository_free_bytes",
        "Free room of the repository's file system, as last seen; no sample: not known.",
        partial(_space, "free_bytes"),
    ),
    _gauge(
        "holdfast_repository_capacity_bytes",
        "Size of the repository's file system, as last seen; no sample: not known.",
        partial(_space, "capacity_bytes"),
    ),
    _gauge(
        "holdfast_repository_seen_timestamp_seconds",
        "When its file system last answered: looked at once a minute.",
        _space_at,
    ),
    _figure("holdfast_points", "Restore points.", lambda figures: figures.repository.points),
    _figure(
        "holdfast_points_in_doubt",
        "Restore points that may lack what change tracking did not tell.",
        lambda figures: figures.repository.points_in_doubt,
    ),
    _figure(
        "holdfast_repository_damaged",
        "1 while the last check that came to an end found damage.",
        lambda figures: float(figures.repository.is_damaged),
    ),
    _figure(
        "holdfast_last_prune_timestamp_seconds",
        "When a prune last ended well; 0: never.",
        lambda figures: figures.repository.pruned_at,
    ),
    _figure(
        "holdfast_last_scrub_timestamp_seconds",
        "When the last scrub of all packs began that came to its end; 0: none did.",
        lambda figures: figures.repository.scrubbed_at,
    ),
    _figure(
        "holdfast_unproven_bytes",
        "Stored data that was never read back and found true, as last looked at.",
        lambda figures: figures.repository.unproven_bytes,
    ),
    _figure(
        "holdfast_oldest_proof_timestamp_seconds",
        "When the stored data was read back and found true of which that is longest ago; 0: none was.",
        lambda figures: figures.repository.oldest_proof_at,
    ),
    _figure(
        "holdfast_keeping_problems",
        "Tasks of keeping the repository that did not end well or cannot begin, and a clock that is not believed.",
        lambda figures: figures.keeping_problems,
    ),
    _figure(
        "holdfast_last_check_timestamp_seconds",
        "When a check of the whole repository last found nothing; 0: never.",
        lambda figures: figures.repository.checked_at,
    ),
    _figure(
        "holdfast_last_data_check_timestamp_seconds",
        "When a check that read data, all or a share of it, last found nothing; 0: never.",
        lambda figures: figures.repository.data_checked_at,
    ),
    _figure(
        "holdfast_last_database_copy_timestamp_seconds",
        "When the controller's database was last copied into the repository; 0: never.",
        lambda figures: figures.repository.database_copied_at,
    ),
    _gauge(
        "holdfast_notifications",
        "Notifications that wait to be sent, and those of the latest thousand that were given up.",
        _messages,
        "state",
    ),
)
