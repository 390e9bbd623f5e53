from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta

from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast_common.identity import AgentId, JobId
from holdfast_controller.decide.dispatch import Begun, DispatchQueue, WaitingJob, Way
from holdfast_controller.decide.load_limits import (
    SHARED_BY_LANES,
    LoadKey,
    LoadKind,
    LoadLimits,
)

NOW = datetime(2026, 11, 23, 22, 0, tzinfo=UTC)
HOST = LoadKey(LoadKind.HOST, "host-1", "esx1")
OTHER_HOST = LoadKey(LoadKind.HOST, "host-2", "esx2")
STORE = LoadKey(LoadKind.DATASTORE, "ds:///1", "nfs1")
BACKUPS = LoadKey(LoadKind.WORK, "backup", "backups")
WINDOW = LoadKey(LoadKind.WINDOW, "p1", "gold")


def job(name: str, *loads: LoadKey, priority: int = 50, last_good: str = "") -> WaitingJob:
    return WaitingJob(job_id=JobId(name), loads=loads, priority=priority, last_good=last_good)


def proxy(name: str) -> Way:
    return Way(agent_id=AgentId(name), loads=(LoadKey(LoadKind.PROXY, name),))


def begun(queue: DispatchQueue, now: datetime = NOW) -> list[str]:
    """All that begin now, in order."""
    found = []
    while (each := queue.begin_next(now)) is not None:
        found.append(str(each.job_id))
    return found


def queue_of(limits: LoadLimits, *jobs: WaitingJob) -> DispatchQueue:
    queue = DispatchQueue(limits)
    for each in jobs:
        queue.add(each, NOW)
    return queue


def test_the_higher_priority_goes_first_then_the_oldest_last_good_point_then_who_came_first() -> (
    None
):
    queue = queue_of(
        LoadLimits(),
        job("a", last_good="2026-11-22T00:00:00Z"),
        job("b", last_good="2026-11-01T00:00:00Z"),
        job("c"),
        job("d"),
        job("e", priority=90, last_good="2026-11-22T00:00:00Z"),
    )
    assert begun(queue) == ["e", "c", "d", "b", "a"]


def test_a_host_never_carries_more_than_its_limit_and_others_go_past_who_waits_for_it() -> None:
    limits = LoadLimits(each={LoadKind.HOST: 2})
    queue = queue_of(
        limits, job("a", HOST), job("b", HOST), job("c", HOST), job("d", OTHER_HOST), job("e", HOST)
    )
    assert begun(queue) == ["a", "b", "d"]
    assert queue.waiting_for(JobId("c")) == (HOST,)
    queue.ended(JobId("b"))
    assert begun(queue) == ["c"]
    queue.ended(JobId("d"))
    assert begun(queue) == []  # what it gave back is of no use to e
    queue.ended(JobId("a"))
    assert begun(queue) == ["e"]


def test_one_thing_may_have_a_limit_of_its_own_by_its_name() -> None:
    limits = LoadLimits(each={LoadKind.HOST: 1}, named={(LoadKind.HOST, "esx2"): 3})
    jobs = [job(f"{number}", OTHER_HOST) for number in range(5)]
    assert len(begun(queue_of(limits, *jobs))) == 3


def test_nothing_passes_a_gate_that_is_shut_and_everything_one_that_opens() -> None:
    queue = queue_of(LoadLimits())
    queue.shut(WINDOW)
    for each in (job("a", WINDOW), job("b", WINDOW), job("c")):
        queue.add(each, NOW)
    assert begun(queue) == ["c"]
    assert queue.waiting_on(WINDOW) == [JobId("a"), JobId("b")]
    queue.open(WINDOW)
    assert begun(queue) == ["a", "b"]
    assert queue.running_on(WINDOW) == [JobId("a"), JobId("b")]


def test_gates_of_a_kind_are_shut_until_somebody_says_which() -> None:
    first = LoadKey(LoadKind.VCENTER, "1")
    second = LoadKey(LoadKind.VCENTER, "2")
    queue = queue_of(LoadLimits())
    queue.shut_all(LoadKind.VCENTER)
    for each in (job("a", first), job("b", second)):
        queue.add(each, NOW)
    assert begun(queue) == []
    queue.shut_only(LoadKind.VCENTER, [second])
    assert begun(queue) == ["a"]
    queue.shut_only(LoadKind.VCENTER, [])
    assert begun(queue) == ["b"]


def test_jobs_are_spread_over_the_proxies_that_can_and_each_bears_no_more_than_it_may() -> None:
    limits = LoadLimits(each={LoadKind.PROXY: 2})
    queue = DispatchQueue(limits)
    for number in range(5):
        queue.add(WaitingJob(job_id=JobId(f"{number}"), ways=(proxy("east"), proxy("west"))), NOW)
    chosen = []
    while (each := queue.begin_next(NOW)) is not None:
        assert each.way is not None
        chosen.append(str(each.way.agent_id))
    assert chosen == ["east", "west", "east", "west"]
    assert {load.key for load in queue.waiting_for(JobId("4"))} == {"east", "west"}
    queue.ended(JobId("1"))
    last = queue.begin_next(NOW)
    assert last is not None
    assert last.way == proxy("west")


def test_what_a_job_waited_for_is_told_with_its_seconds_when_it_begins() -> None:
    limits = LoadLimits(each={LoadKind.HOST: 1, LoadKind.WORK: 1})
    queue = queue_of(limits, job("a", HOST, BACKUPS))
    assert begun(queue) == ["a"]
    queue.add(job("b", HOST, BACKUPS), NOW)
    queue.add(job("c", OTHER_HOST, BACKUPS), NOW)
    assert begun(queue) == []
    queue.ended(JobId("a"))
    later = NOW + timedelta(seconds=30)
    assert begun(queue, later) == ["b"]
    queue.ended(JobId("b"))
    last = queue.begin_next(NOW + timedelta(seconds=42))
    assert isinstance(last, Begun)
    assert [(wait.load, wait.seconds) for wait in last.waits] == [(BACKUPS, 42.0)]
    assert queue.waits(JobId("c"), later) == ()


def test_lanes_are_streams_on_host_and_proxy_and_a_job_takes_as_many_as_there_is_room_for() -> None:
    queue = DispatchQueue(LoadLimits(each={LoadKind.HOST: 3, LoadKind.DATASTORE: 1}))
    east = proxy("east")
    for name in ("a", "b", "c"):
        loads = (HOST, LoadKey(LoadKind.DATASTORE, name), BACKUPS)
        queue.add(WaitingJob(job_id=JobId(name), loads=loads, ways=(east,), lanes=2), NOW)
    first, second = queue.begin_next(NOW), queue.begin_next(NOW)
    assert first is not None
    assert (first.lanes, first.narrow, first.lanes_text) == (2, None, "in 2 lanes")
    assert second is not None
    assert (second.lanes, second.narrow) == (1, HOST)
    assert second.lanes_text == "in 1 of 2 lanes: host esx1 has no room for more"
    assert (queue.book.carried(HOST), queue.book.carried(east.loads[0])) == (3, 3)
    assert queue.book.carried(BACKUPS) == 2
    assert queue.begin_next(NOW) is None
    queue.ended(first.job_id)
    third = queue.begin_next(NOW)
    assert third is not None
    assert third.lanes == 2
    queue.ended(second.job_id)
    queue.ended(third.job_id)
    assert (queue.book.carried(HOST), queue.book.carried(east.loads[0])) == (0, 0)


def test_a_job_that_is_taken_back_never_begins() -> None:
    queue = queue_of(LoadLimits(each={LoadKind.HOST: 1}), job("a", HOST), job("b", HOST))
    assert begun(queue) == ["a"]
    assert queue.take_back(JobId("b"))
    assert not queue.take_back(JobId("b"))
    assert not queue.take_back(JobId("a"))  # it has begun
    queue.ended(JobId("a"))
    assert begun(queue) == []
    assert len(queue) == 0


KEYS = [
    LoadKey(kind, key)
    for kind in (LoadKind.DATASTORE, LoadKind.HOST, LoadKind.WORK)
    for key in ("1", "2")
]
PROXIES = [proxy(name) for name in ("east", "west", "north")]


@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(min_value=0, max_value=2**32),
    limit=st.integers(min_value=1, max_value=3),
    jobs=st.integers(min_value=1, max_value=40),
)
def test_no_limit_is_ever_passed_and_nobody_waits_for_what_has_room(
    seed: int, limit: int, jobs: int
) -> None:
    chance = random.Random(seed)  # no secret
    limits = LoadLimits(
        each={LoadKind.DATASTORE: limit, LoadKind.HOST: 2, LoadKind.WORK: 3, LoadKind.PROXY: 1}
    )
    queue = DispatchQueue(limits)
    running: list[JobId] = []
    lanes: dict[JobId, int] = {}
    waiting: dict[JobId, WaitingJob] = {}
    names = iter(range(10**6))
    to_add = jobs
    for _ in range(jobs * 6):
        act = chance.random()
        if act < 0.4 and to_add:
            to_add -= 1
            added = WaitingJob(
                job_id=JobId(f"{next(names):06}"),
                priority=chance.randint(0, 2),
                loads=(*chance.sample(KEYS, chance.randint(0, 3)), WINDOW),
                ways=tuple(chance.sample(PROXIES, chance.randint(0, 3))),
                lanes=chance.randint(1, 3),
            )
            waiting[added.job_id] = added
            queue.add(added, NOW)
        elif act < 0.8 and running:
            queue.ended(running.pop(chance.randrange(len(running))))
        elif act < 0.85 and waiting:
            gone = chance.choice(sorted(waiting))
            assert queue.take_back(gone)
            del waiting[gone]
        elif act < 0.9:
            queue.shut(WINDOW)
        else:
            queue.open(WINDOW)
        while (each := queue.begin_next(NOW)) is not None:
            assert 1 <= each.lanes <= each.lanes_wanted == waiting[each.job_id].lanes
            assert (each.narrow is None) == (each.lanes == each.lanes_wanted)
            del waiting[each.job_id]
            running.append(each.job_id)
            lanes[each.job_id] = each.lanes
        _check(queue, limits, waiting, {each: lanes[each] for each in running})


def _check(
    queue: DispatchQueue,
    limits: LoadLimits,
    waiting: dict[JobId, WaitingJob],
    running: dict[JobId, int],
) -> None:
    assert queue.running() == sorted(running)
    assert len(queue) == len(waiting)
    for load in (*KEYS, *(load for each in PROXIES for load in each.loads)):
        streams_max = limits.streams_max(load)
        assert streams_max is not None
        on_it = [running[each] for each in queue.running_on(load)]
        streams = sum(on_it) if load.kind in SHARED_BY_LANES else len(on_it)
        assert queue.book.carried(load) == streams <= streams_max
    for each in waiting.values():
        could = queue.book.first_full(each.loads) is None and (
            not each.ways or any(queue.book.first_full(way.loads) is None for way in each.ways)
        )
        assert not could, f"{each} waits for nothing"


def test_a_vm_that_needs_two_busy_things_at_once_is_not_overtaken_for_ever() -> None:
    """Each thing frees when the other is full: whoever needs only one of them would take it each time."""
    limits = LoadLimits(each={LoadKind.HOST: 1, LoadKind.DATASTORE: 1})
    queue = queue_of(limits, job("host 0", HOST), job("store 0", STORE))
    assert begun(queue) == ["host 0", "store 0"]
    queue.add(job("wide", HOST, STORE, priority=90), NOW)
    for number in range(1, 50):
        queue.add(job(f"host {number}", HOST), NOW)
        queue.add(job(f"store {number}", STORE), NOW)
    order = until_begun(queue, "wide", running=["host 0", "store 0"])
    assert len(order) <= 6
    # what was kept free for it is free for others once it has ended
    assert queue.running() == ["wide"]
    queue.ended(JobId("wide"))
    assert len(begun(queue)) == 2


def until_begun(queue: DispatchQueue, name: str, *, running: list[str]) -> list[str]:
    """What begins until this job does; always the first that began ends."""
    order = list[str]()
    while name not in order:
        assert len(order) < 20, "it is overtaken for ever"
        queue.ended(JobId(running.pop(0)))
        found = begun(queue)
        running += found
        order += found
    return order


def crowded(*loads: LoadKey) -> DispatchQueue:
    """A host and a datastore that are always busy, and a job that needs both, for which places are kept now."""
    limits = LoadLimits(each={LoadKind.HOST: 1, LoadKind.DATASTORE: 1})
    queue = queue_of(limits, job("host 0", HOST), job("store 0", STORE))
    begun(queue)
    queue.add(job("wide", HOST, STORE, *loads, priority=90), NOW)
    for number in range(1, 50):
        queue.add(job(f"host {number}", HOST), NOW)
        queue.add(job(f"store {number}", STORE), NOW)
    running = ["host 0", "store 0"]
    while len(running) == 2:
        queue.ended(JobId(running.pop(0)))
        running += begun(queue)
    assert running != ["wide"]
    return queue


def test_nothing_is_kept_free_for_who_waits_behind_a_shut_gate() -> None:
    queue = crowded(WINDOW)
    queue.shut(WINDOW)
    assert len(begun(queue)) == 1
    queue.open(WINDOW)
    assert begun(queue) == []
    until_begun(queue, "wide", running=[str(each) for each in queue.running()])
    assert queue.running() == ["wide"]


def test_what_was_kept_free_for_a_job_that_is_taken_back_is_used() -> None:
    queue = crowded()
    assert queue.take_back(JobId("wide"))
    assert len(begun(queue)) == 1
    assert len(queue.running()) == 2


def test_a_job_that_is_put_back_weighs_on_what_it_is_found_to_and_keeps_what_it_waited_for() -> (
    None
):
    limits = LoadLimits(each={LoadKind.HOST: 1})
    queue = queue_of(limits, job("a", HOST))
    assert begun(queue) == ["a"]
    queue.add(job("b", HOST), NOW)
    queue.add(job("c", OTHER_HOST), NOW)
    queue.add(job("d", HOST), NOW)
    assert begun(queue) == ["c"]
    queue.ended(JobId("a"))
    later = NOW + timedelta(seconds=30)
    found = queue.begin_next(later)
    assert found is not None
    queue.put_back(found, job("b", OTHER_HOST), later)
    assert begun(queue, later) == ["d"], "its old host is free for others"
    queue.ended(JobId("c"))
    last = queue.begin_next(NOW + timedelta(seconds=50))
    assert last is not None
    assert [(wait.load, wait.seconds) for wait in last.waits] == [(HOST, 30.0), (OTHER_HOST, 20.0)]
    queue.ended(JobId("b"))
    queue.ended(JobId("d"))
    assert (queue.book.carried(HOST), queue.book.carried(OTHER_HOST)) == (0, 0)
