"""The brake on datastores whose reads take long: when backups begin there and how fast they go, by the lab's own log."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from pathlib import Path
from threading import Event

from holdfast_common.job_spec import TransportKind
from holdfast_controller.configuration import StreamLimits
from holdfast_controller.decide.load_limits import LoadKind
from holdfast_controller.runs.why import Reason, explain
from holdfast_lab.inventory_plan import DiskPlan, InventoryPlan, MachinePlan
from holdfast_lab.server import RunningLab, running_lab
from support.one_process import OneProcess, one_process
from support.waiting import wait_until

MIB = 1 << 20
SECONDS = 60.0
LOOK_SECONDS = 0.05
BRAKED = StreamLimits(latency_start_milliseconds=20, latency_look_seconds=LOOK_SECONDS)
HELD_SECONDS = 1.5  # more than the second by which the figure may be wrong


def set_latency(lab: RunningLab, milliseconds: int, *, datastore: str = "nfs1") -> None:
    lab.control.call("datastore-set", name=datastore, read_latency=milliseconds)


def told_at(lab: RunningLab, milliseconds: int) -> datetime | None:
    """When the lab told this latency of nfs1 first."""
    for event in lab.lab.calls.events(event="read_latency_told"):
        if (event["datastore"], event["milliseconds"]) == ("nfs1", milliseconds):
            return datetime.fromisoformat(str(event["time"]))
    return None


def looks_from_now(lab: RunningLab, count: int) -> None:
    """Until the controller has asked so often more."""
    asked = lab.control.call("calls", event="call", method="QueryPerf")
    after = asked[-1]["n"] if asked else 0
    wait_until(
        lambda: (
            len(lab.control.call("calls", event="call", method="QueryPerf", after=after)) >= count
        ),
        seconds=SECONDS,
        what="it looks again",
    )


def of_question(holdfast: OneProcess, name: str, question: str) -> list[Reason]:
    """What `holdfast why` tells."""
    reasons = explain(holdfast.world, holdfast.engine.dispatcher, name)
    return [each for each in reasons if each.question == question]


def test_no_stream_begins_on_a_slow_datastore_until_it_has_recovered_and_why_tells_the_seconds(
    tmp_path: Path, lab: RunningLab
) -> None:
    set_latency(lab, 35)
    with one_process(tmp_path / "holdfast", lab, limits=BRAKED) as holdfast:
        holdfast.engine.latency.start()
        started = holdfast.start("web")
        (job_id,) = started.job_ids
        wait_until(lambda: told_at(lab, 35) is not None, seconds=SECONDS, what="it is measured")
        assert holdfast.back_up("app").error is None  # on another datastore
        Event().wait(HELD_SECONDS)
        set_latency(lab, 17)  # below the threshold, and not yet low enough
        looks_from_now(lab, 3)
        (wait,) = holdfast.engine.dispatcher.waits(job_id)
        assert wait.load.kind is LoadKind.LATENCY
        (told,) = holdfast.engine.latency.told()
        assert told.startswith("datastore nfs1: no backup begins there")
        set_latency(lab, 15)
        assert str(holdfast.ended(started).state) == "done"
        assert holdfast.engine.latency.told() == []
        held, freed = told_at(lab, 35), told_at(lab, 15)
        assert held is not None and freed is not None
        (reason,) = of_question(holdfast, job_id, "waited for")
        assert reason.answer == "latency of datastore nfs1"
        assert abs(reason.seconds - (freed - held).total_seconds()) < 1.0
        assert reason.seconds >= HELD_SECONDS


def test_where_latencies_cannot_be_measured_nothing_is_held_and_it_is_told(
    tmp_path: Path, lab: RunningLab
) -> None:
    set_latency(lab, 35)
    lab.control.call(
        "misbehave",
        kind="fail_call",
        match={"method": "QueryPerf"},
        times=0,
        parameters={"fault": "NotSupported"},
    )
    with one_process(tmp_path / "holdfast", lab, limits=BRAKED) as holdfast:
        holdfast.engine.latency.start()
        assert str(holdfast.back_up("web").state) == "done"
        (told,) = holdfast.engine.latency.told()
        assert told.startswith("read latencies at vCenter lab cannot be measured")


def test_running_streams_are_slowed_past_the_second_threshold_and_freed_again(
    tmp_path: Path,
) -> None:
    big = MachinePlan(
        name="big",
        datastore="nfs1",
        disks=(DiskPlan(size_bytes=24 * MIB, content="random", content_bytes=24 * MIB),),
    )
    plan = InventoryPlan(machines=(big, MachinePlan(name="proxy", datastore="vmfs1", disks=())))
    slowed = StreamLimits(
        latency_slow_milliseconds=30,
        latency_look_seconds=LOOK_SECONDS,
        slowed_bytes_per_second_max=2 * MIB,
        slowed_bytes_per_second_min=MIB // 2,
    )
    with (
        running_lab(tmp_path / "lab", inventory=plan) as lab,
        one_process(
            tmp_path / "holdfast", lab, limits=slowed, transports=(TransportKind.NFC,)
        ) as holdfast,
    ):

        def read_bytes() -> int:
            return lab.lab.calls.counted()["datastores"]["nfs1"]["bytes_read"]

        def read_in(seconds: float) -> int:
            before = read_bytes()
            Event().wait(seconds)
            return read_bytes() - before

        holdfast.agent.before = lambda _: set_latency(lab, 50)
        holdfast.engine.latency.start()
        started = holdfast.start("big")
        (job_id,) = started.job_ids
        told = holdfast.agent.limited
        wait_until(
            lambda: [rates for _, rates in told][-1:] == [{2000: MIB // 2}],
            seconds=SECONDS,
            what="it is slow",
        )
        assert [rates[2000] for _, rates in told] == [2 * MIB, MIB, MIB // 2]
        (now,) = of_question(holdfast, job_id, "is slowed now by")
        assert now.answer == "latency of datastore nfs1, to 512.0 KiB/s"
        (status,) = holdfast.engine.latency.told()
        assert "slowed to 512.0 KiB/s" in status
        wait_until(
            lambda: read_in(0.5) <= MIB, seconds=SECONDS, what="what was read ahead is used up"
        )
        assert read_in(HELD_SECONDS) <= 2 * MIB
        assert not holdfast.world.jobs.job(job_id).ended
        while_slow = read_bytes()
        set_latency(lab, 5)
        assert str(holdfast.ended(started).state) == "done"
        assert told[-1][1] == {}
        assert read_bytes() > while_slow
        (opened,) = (
            each
            for each in lab.lab.calls.events(event="stream_open")
            if each["transport"] == "nfc" and str(each["file"]).endswith(".vmdk")
        )
        freed = told_at(lab, 5)
        assert freed is not None
        slow_seconds = (freed - datetime.fromisoformat(str(opened["time"]))).total_seconds()
        (reason,) = of_question(holdfast, job_id, "was slowed by")
        assert reason.answer == "latency of datastore nfs1"
        assert abs(reason.seconds - slow_seconds) < 1.0


def test_an_older_agent_is_told_no_rates(tmp_path: Path, lab: RunningLab) -> None:
    set_latency(lab, 50)
    slowed = StreamLimits(latency_slow_milliseconds=30, latency_look_seconds=LOOK_SECONDS)
    with one_process(tmp_path / "holdfast", lab, limits=slowed) as holdfast:
        holdfast.agent.agent = replace(holdfast.agent.agent, can_be_slowed=False)
        holdfast.agent.before = lambda _: looks_from_now(lab, 2)
        holdfast.engine.latency.start()
        job = holdfast.back_up("web")
        assert str(job.state) == "done"
        assert holdfast.agent.limited == []
        assert of_question(holdfast, job.job_id, "was slowed by") == []


def test_without_thresholds_nobody_asks_how_long_reads_take(
    tmp_path: Path, lab: RunningLab
) -> None:
    set_latency(lab, 1000)
    with one_process(tmp_path / "holdfast", lab) as holdfast:
        holdfast.engine.latency.start()
        assert str(holdfast.back_up("web").state) == "done"
        assert lab.control.call("calls", event="call", method="QueryPerf") == []
