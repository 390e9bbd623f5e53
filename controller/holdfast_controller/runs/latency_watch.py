"""Measures how long reads take from the datastores that backups use, and keeps the brakes of `decide.latency_brake`.

A thread of its own while thresholds are set. Asked of vSphere is only what concerns datastores on which a backup is at
work or waits; one that was not measured lately is measured before the first stream begins there.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Collection, Iterable, Mapping
from typing import Final

from holdfast_common.errors import HoldfastError
from holdfast_common.identity import DatastoreId
from holdfast_common.units import size_text
from holdfast_controller.configuration import StreamLimits
from holdfast_controller.decide.dispatch import WaitingJob
from holdfast_controller.decide.latency_brake import Brake, LatencyLimits, measured, unmeasured
from holdfast_controller.decide.load_limits import LoadKey, LoadKind
from holdfast_controller.runs.dispatcher import Dispatcher
from holdfast_controller.runs.world import World
from holdfast_controller.vsphere.read_latency import ReadLatencies, instance_of
from holdfast_controller.vsphere.session import VsphereSession

log = logging.getLogger(__name__)

PULSE: Final = "latency"
PULSE_SECONDS_MAX: Final = 900.0  # a vCenter that hangs is given up after two minutes
LOOKS_KNOWN: Final = 3  # for so many looks a measurement is good enough to begin a stream by
_JOIN_SECONDS: Final = 5.0


def latency_limits(limits: StreamLimits) -> LatencyLimits:
    """As the controller's configuration says them."""
    return LatencyLimits(
        start_milliseconds=limits.latency_start_milliseconds,
        slow_milliseconds=limits.latency_slow_milliseconds,
        slowed_bytes_per_second_max=limits.slowed_bytes_per_second_max,
        slowed_bytes_per_second_min=limits.slowed_bytes_per_second_min,
    )


class LatencyWatch:
    """`expect` from any thread; `look` from the watch's own, or a test's."""

    def __init__(self, world: World, dispatcher: Dispatcher) -> None:
        self._world = world
        self._dispatcher = dispatcher
        self._look_seconds = world.configuration.limits.latency_look_seconds
        self.limits = latency_limits(world.configuration.limits)
        self._lock = threading.Lock()
        self._brakes: dict[LoadKey, Brake] = {}  # by gate
        self._pending: set[LoadKey] = set()  # shut until the next look, whoever waits there
        self._readers: dict[str, tuple[VsphereSession, ReadLatencies]] = {}
        self._problems: dict[str, str] = {}  # by vCenter: why it cannot be measured there
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._run, name="latency", daemon=True)

    @property
    def brakes(self) -> bool:
        """Whether any threshold is set."""
        return self.limits.brakes

    def start(self) -> None:
        """Measure from now on."""
        if self.brakes:
            self._thread.start()

    def close(self) -> None:
        """End. A look that hangs at its vCenter is left alone."""
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(_JOIN_SECONDS)

    def expect(self, jobs: Iterable[WaitingJob]) -> None:
        """Jobs that are about to wait: what was not measured lately is shut until it is."""
        gates = {load for job in jobs for load in job.loads if load.kind is LoadKind.LATENCY}
        if not gates:
            return
        now = self._world.clock.monotonic_seconds()
        with self._lock:
            unknown = [gate for gate in gates if not self._is_known(gate, now)]
            self._pending.update(unknown)
        for gate in unknown:
            self._dispatcher.shut(gate)
        if unknown:
            self._wake.set()

    def look(self) -> None:
        """Measure once, and hold or release what follows from it. Raises: StoreFailed."""
        with self._lock:
            pending, self._pending = self._pending, set()
        gates = self._dispatcher.in_use(LoadKind.LATENCY) | pending
        found = self._measured(gates) if gates else {}
        now = self._world.clock.monotonic_seconds()
        brakes: dict[LoadKey, Brake] = {}
        with self._lock:
            for gate in gates:
                before = self._brakes.get(gate, Brake())
                milliseconds = found.get(instance_of(DatastoreId(gate.key)))
                if milliseconds is None:
                    brake = unmeasured(before, now)
                else:
                    brake = measured(before, milliseconds, self.limits, now)
                brakes[gate] = brake
                _log_change(gate, before, brake)
            self._brakes = brakes
        for gate, brake in brakes.items():
            if brake.held:
                self._dispatcher.shut(gate)
            else:
                self._dispatcher.open(gate)
        self._world.streams.slow(
            self._world.link,
            {
                gate: brake.bytes_per_second
                for gate, brake in brakes.items()
                if brake.bytes_per_second
            },
            now,
        )

    def told(self) -> list[str]:
        """For people: what is braked now, and where nothing can be measured."""
        with self._lock:
            held = [
                f"datastore {gate.name}: no backup begins there: reads take"
                f" {brake.milliseconds:.0f} ms, past {self.limits.start_milliseconds} ms"
                for gate, brake in sorted(self._brakes.items(), key=lambda item: item[0].name)
                if brake.held
            ]
            slowed = [
                f"datastore {gate.name}: each backup's stream there is slowed to"
                f" {size_text(brake.bytes_per_second)}/s: reads take {brake.milliseconds:.0f} ms"
                for gate, brake in sorted(self._brakes.items(), key=lambda item: item[0].name)
                if brake.bytes_per_second is not None
            ]
            return [*held, *slowed] + [
                f"read latencies at vCenter {name} cannot be measured, so nothing is braked there:"
                f" {problem}"
                for name, problem in sorted(self._problems.items())
            ]

    # -- inside -----------------------------------------------------------------------------------

    def _is_known(self, gate: LoadKey, now: float) -> bool:
        brake = self._brakes.get(gate)
        within = LOOKS_KNOWN * self._look_seconds
        return brake is not None and brake.is_known(now, within_seconds=within)

    def _run(self) -> None:
        pulses = self._world.pulses
        pulses.expect(PULSE, within_seconds=PULSE_SECONDS_MAX + self._look_seconds)
        while not self._world.stopping.is_set():
            self._wake.wait(self._look_seconds)
            self._wake.clear()
            pulses.beat(PULSE)
            try:
                self.look()
            except HoldfastError as error:
                log.warning("read latencies are not measured", extra={"error": error.line()})
            except Exception:
                # A bug in one look must not leave a datastore's gate shut, or its streams unbraked, for ever.
                log.exception("read latencies are not measured because of a bug")
        pulses.end(PULSE)

    def _measured(self, gates: Collection[LoadKey]) -> Mapping[str, float]:
        """Milliseconds by instance, the highest of all vCenters that know the datastore."""
        found: dict[str, float] = {}
        for row in self._world.vcenters.table.all():
            hosts = self._hosts(row.vcenter_id, {gate.key for gate in gates})
            if not hosts:
                continue
            problem = ""
            try:
                for instance, each in self._reader(row.vcenter_id).read(hosts).items():
                    found[instance] = max(found.get(instance, 0.0), each)
            except HoldfastError as error:
                problem = str(error)
            self._note(row.name, problem)
        return found

    def _hosts(self, vcenter_id: str, datastore_ids: Collection[str]) -> list[str]:
        """Morefs of the hosts of a vCenter that have one of these datastores mounted."""
        try:
            around = self._world.vcenters.inventory.surroundings(vcenter_id)
        except HoldfastError:
            return []  # it was never read
        morefs = {each.moref for each in around.datastores if each.datastore_id in datastore_ids}
        return [host.moref for host in around.hosts if morefs & set(host.datastore_morefs)]

    def _reader(self, vcenter_id: str) -> ReadLatencies:
        session = self._world.vcenters.session(vcenter_id)
        kept = self._readers.get(vcenter_id)
        if kept is None or kept[0] is not session:
            kept = self._readers[vcenter_id] = (session, ReadLatencies(session))
        return kept[1]

    def _note(self, name: str, problem: str) -> None:
        with self._lock:
            before = self._problems.pop(name, "")
            if problem:
                self._problems[name] = problem
        if problem and problem != before:
            log.warning("read latencies cannot be measured", extra={"error": problem})


def _log_change(gate: LoadKey, before: Brake, brake: Brake) -> None:
    if (before.held, before.bytes_per_second) != (brake.held, brake.bytes_per_second):
        log.info(
            "a datastore's brake changed",
            extra={
                "datastore": gate.name,
                "milliseconds": brake.milliseconds,
                "held": brake.held,
                "bytes_per_second": brake.bytes_per_second or 0,
            },
        )
