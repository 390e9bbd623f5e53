"""Which of the waiting jobs begins next, on which proxy, and what the others wait for. Pure: no clock of its own.

Jobs begin in their order as far as everything that they weigh on has room. One that finds no room waits there, and is asked
again when there is some; so an end costs what it frees, not the length of the queue. A job that is behind may begin
before one that waits for a busy host: nothing stands idle, and nobody is overtaken on the host itself.

A job that needs several busy things would find each of them free only when another is not. After some such turns a place on
each is kept free for it, for one job at a time: others that need only one of them could overtake it for ever.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterable, Set
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from holdfast_common.identity import AgentId, JobId
from holdfast_controller.decide.load_limits import (
    GATES,
    LoadBook,
    LoadKey,
    LoadKind,
    LoadLimits,
    in_order,
)

Order = tuple[int, str, str]  # the smaller begins first
TURNS_MAX: Final = (
    3  # so often a job had its turn, and found something else full, before places are kept for it
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """A proxy that could carry a job out. ``loads``: what the job weighs on if this one does it."""

    agent_id: AgentId
    loads: tuple[LoadKey, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitingJob:
    """``priority``: the higher goes first. ``last_good``: UTC ISO text of its VM's last good point; the oldest, or none, goes first.

    ``loads``: what it weighs on whoever does it. ``ways``: none, when it needs no proxy that could be chosen now.
    ``lanes``: how many streams it may have at once; it begins with as many as there is room for, and with one at least.
    """

    job_id: JobId
    priority: int = 50
    last_good: str = ""
    loads: tuple[LoadKey, ...] = ()
    ways: tuple[Way, ...] = ()
    lanes: int = 1

    @property
    def order(self) -> Order:
        """Ids rise with time: of equals the one that came first."""
        return -self.priority, self.last_good, self.job_id


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """Time that a job spent waiting for one thing."""

    load: LoadKey
    since: datetime
    until: datetime

    @property
    def seconds(self) -> float:
        """How long."""
        return (self.until - self.since).total_seconds()


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """A job that begins now. ``way``: None, when it needs none. ``waits``: what it waited for until now, in order.

    ``lanes`` of ``lanes_wanted``: how many streams it has; ``narrow``: what has no room for more.
    """

    job_id: JobId
    way: Way | None
    waits: tuple[Wait, ...]
    lanes: int = 1
    lanes_wanted: int = 1
    narrow: LoadKey | None = None

    @property
    def lanes_text(self) -> str:
        """For people; empty where one stream is all that was wanted."""
        if self.lanes_wanted == 1:
            return ""
        if self.narrow is None:
            return f"in {self.lanes} lanes"
        return (
            f"in {self.lanes} of {self.lanes_wanted} lanes: {self.narrow.text} has no room for more"
        )


@dataclass(slots=True)
class _Entry:
    """A waiting job, where it waits, and since when."""

    job: WaitingJob
    added_at: datetime
    parked_at: tuple[LoadKey, ...] = ()
    since: datetime | None = None
    waits: list[Wait] = field(default_factory=list)
    queued_at: set[LoadKey] = field(default_factory=set)  # in whose queues its name stands
    turns: int = 0  # in vain

    def stop_waiting(self, now: datetime) -> None:
        """The wait that ends, written down as one for the first thing it waited for."""
        if self.parked_at and self.since is not None and now > self.since:
            load = self.parked_at[0]
            if self.waits and self.waits[-1].load == load and self.waits[-1].until == self.since:
                self.waits[-1] = Wait(load=load, since=self.waits[-1].since, until=now)
            else:
                self.waits.append(Wait(load=load, since=self.since, until=now))
        self.parked_at = ()
        self.since = None


@dataclass(frozen=True, slots=True)
class _Running:
    """What a job that has begun weighs on, and with how many lanes."""

    loads: tuple[LoadKey, ...]
    lanes: int


class DispatchQueue:
    """Jobs that wait and jobs that run. Not thread-safe: its owner has a lock."""

    def __init__(self, limits: LoadLimits) -> None:
        self.book = LoadBook(limits)
        self._waiting: dict[JobId, _Entry] = {}
        self._running: dict[JobId, _Running] = {}
        self._ready: list[tuple[Order, JobId]] = []
        self._parked: defaultdict[LoadKey, list[tuple[Order, JobId]]] = defaultdict(list)
        self._freed: set[LoadKey] = set()
        self._kept_for: JobId | None = None

    def __len__(self) -> int:
        """How many wait."""
        return len(self._waiting)

    def add(self, job: WaitingJob, now: datetime) -> None:
        """A job that waits from now on."""
        assert job.job_id not in self._waiting, job.job_id
        assert job.job_id not in self._running, job.job_id
        self._waiting[job.job_id] = _Entry(job, now)
        heapq.heappush(self._ready, (job.order, job.job_id))

    def take_back(self, job_id: JobId) -> bool:
        """Whether it had not begun, and now never will."""
        if job_id == self._kept_for:
            self._keep_nothing()
        return self._waiting.pop(job_id, None) is not None

    def begin_next(self, now: datetime) -> Begun | None:
        """The next job that begins now; None: nothing more can."""
        while (found := self._next_candidate()) is not None:
            entry = self._waiting[found]
            entry.stop_waiting(now)
            if found == self._kept_for:
                self._keep_nothing()
            way, full = self._choose(entry.job)
            if full:
                self._park(entry, full, now)
                continue
            loads = in_order((*entry.job.loads, *(way.loads if way else ())))
            wanted = entry.job.lanes
            lanes, narrow = self.book.room_for_lanes(loads, wanted) if wanted > 1 else (1, None)
            self.book.take(loads, lanes=lanes)
            self._running[found] = _Running(loads, lanes)
            del self._waiting[found]
            return Begun(
                job_id=found,
                way=way,
                waits=tuple(entry.waits),
                lanes=lanes,
                lanes_wanted=wanted,
                narrow=narrow,
            )
        return None

    def put_back(self, begun: Begun, job: WaitingJob, now: datetime) -> None:
        """It did not begin after all: it weighs on other things than was thought. What it waited for stays told."""
        assert begun.job_id == job.job_id
        self.ended(begun.job_id)
        self.add(job, now)
        self._waiting[job.job_id].waits.extend(begun.waits)

    def ended(self, job_id: JobId) -> None:
        """A job that had begun weighs on nothing any more."""
        ended = self._running.pop(job_id)
        self.book.give_back(ended.loads, lanes=ended.lanes)
        self._freed.update(ended.loads)

    def open(self, gate: LoadKey) -> None:
        """What waits there may begin."""
        self.book.open(gate)
        self._freed.add(gate)

    def shut(self, gate: LoadKey) -> None:
        """What waits for it does not begin; what has begun goes on."""
        self.book.shut(gate)

    def shut_all(self, kind: LoadKind) -> None:
        """Every gate of a kind."""
        self.book.shut_all(kind)

    def shut_only(self, kind: LoadKind, keys: Iterable[LoadKey]) -> None:
        """These gates of a kind, and no other."""
        self.book.shut_only(kind, keys)
        self._freed.update(load for load in self._parked if load.kind is kind)

    def waiting_for(self, job_id: JobId) -> tuple[LoadKey, ...]:
        """What a waiting job found full when it was asked last; empty: it was not asked, or does not wait."""
        entry = self._waiting.get(job_id)
        return () if entry is None else entry.parked_at

    def waits(self, job_id: JobId, now: datetime) -> tuple[Wait, ...]:
        """What a waiting job has waited for until now; empty when it does not wait."""
        entry = self._waiting.get(job_id)
        if entry is None:
            return ()
        if not entry.parked_at or entry.since is None:
            return tuple(entry.waits)
        current = Wait(load=entry.parked_at[0], since=entry.since, until=now)
        return (*entry.waits, current)

    def waiting_on(self, gate: LoadKey) -> list[JobId]:
        """Waiting jobs that pass this gate or need this thing, in their order."""
        found = [entry.job for entry in self._waiting.values() if gate in entry.job.loads]
        return [job.job_id for job in sorted(found, key=lambda job: job.order)]

    def waiting_only_for(self, agents: Set[str]) -> list[JobId]:
        """Waiting jobs that no other agent could carry out."""
        return [
            job_id
            for job_id, entry in self._waiting.items()
            if entry.job.ways and all(way.agent_id in agents for way in entry.job.ways)
        ]

    def running_on(self, load: LoadKey) -> list[JobId]:
        """Jobs that have begun and weigh on it."""
        return sorted(job_id for job_id, each in self._running.items() if load in each.loads)

    def in_use(self, kind: LoadKind) -> set[LoadKey]:
        """Everything of a kind that a job waits for, passes or weighs on."""
        waiting = (entry.job.loads for entry in self._waiting.values())
        running = (each.loads for each in self._running.values())
        found = {load for loads in (*waiting, *running) for load in loads}
        return {load for load in found if load.kind is kind}

    def running(self) -> list[JobId]:
        """Jobs that have begun."""
        return sorted(self._running)

    # -- inside -----------------------------------------------------------------------------------

    def _choose(self, job: WaitingJob) -> tuple[Way | None, tuple[LoadKey, ...]]:
        """The least loaded of its ways that have room; else what is full, the narrowest of each way."""
        full = self.book.first_full(in_order(job.loads))
        if full is not None:
            return None, (full,)
        if not job.ways:
            return None, ()
        best: Way | None = None
        best_weight = 0
        blocked: list[LoadKey] = []
        for way in job.ways:
            full = self.book.first_full(way.loads)
            if full is not None:
                blocked.append(full)
                continue
            weight = sum(self.book.carried(load) for load in way.loads)
            if best is None or weight < best_weight:
                best, best_weight = way, weight
        return best, () if best is not None else in_order(blocked)

    def _park(self, entry: _Entry, full: tuple[LoadKey, ...], now: datetime) -> None:
        entry.parked_at = full
        entry.since = now
        entry.turns += 1
        if entry.turns > TURNS_MAX and self._kept_for is None and full[0].kind not in GATES:
            self._kept_for = entry.job.job_id
            self.book.keep(entry.job.loads)
        for load in full:
            if load not in entry.queued_at:
                entry.queued_at.add(load)
                heapq.heappush(self._parked[load], (entry.job.order, entry.job.job_id))

    def _keep_nothing(self) -> None:
        self._freed.update(self.book.kept)
        self.book.keep(())
        self._kept_for = None

    def _kept_candidate(self) -> JobId | None:
        """The job for which places are kept, when there is room where it waits. Behind a shut gate it keeps none."""
        if self._kept_for is None:
            return None
        job_id, entry, kept = self._kept_for, self._waiting[self._kept_for], self.book.kept
        self.book.keep(())
        gates = (load for load in entry.job.loads if load.kind in GATES)
        is_shut = self.book.first_full(gates) is not None
        has_room = any(self.book.has_room(load) for load in entry.parked_at)
        self.book.keep(kept)
        if is_shut:
            entry.turns = 0
            self._keep_nothing()
            return None
        return job_id if has_room else None

    def _next_candidate(self) -> JobId | None:
        """The first in order of those that were never asked, and of those that wait where there is room now."""
        if (kept := self._kept_candidate()) is not None:
            return kept
        first: tuple[Order, JobId] | None = self._first_ready()
        where: LoadKey | None = None
        for load in list(self._freed):
            found = self._first_parked(load) if self.book.has_room(load) else None
            if found is None:
                self._freed.discard(load)
            elif first is None or found < first:
                first, where = found, load
        if first is None:
            return None
        job_id = first[1]
        if where is None:
            heapq.heappop(self._ready)
        else:
            self._leave_queue(where)
        return job_id

    def _first_ready(self) -> tuple[Order, JobId] | None:
        """The first that was not asked yet; names of jobs that were taken back are dropped."""
        while self._ready:
            if self._ready[0][1] in self._waiting:
                return self._ready[0]
            heapq.heappop(self._ready)
        return None

    def _first_parked(self, load: LoadKey) -> tuple[Order, JobId] | None:
        """The first that still waits for it; names of jobs that began, or wait elsewhere, are dropped."""
        queue = self._parked.get(load)
        while queue:
            entry = self._waiting.get(queue[0][1])
            if entry is not None and load in entry.parked_at:
                return queue[0]
            self._leave_queue(load)
        return None

    def _leave_queue(self, load: LoadKey) -> None:
        """Take the first name out of a queue."""
        queue = self._parked[load]
        _, job_id = heapq.heappop(queue)
        entry = self._waiting.get(job_id)
        if entry is not None:
            entry.queued_at.discard(load)
        if not queue:
            del self._parked[load]
