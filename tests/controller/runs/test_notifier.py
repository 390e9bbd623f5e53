"""What happened is told once, what lasts again after a while; and a dead service holds up nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path

import msgspec
import pytest

from holdfast_common.clock import SystemClock
from holdfast_common.errors import ConfigurationError
from holdfast_common.identity import JobId, RunId
from holdfast_common.job_result import DiskResult
from holdfast_common.logs import Secret
from holdfast_controller.configuration import NotificationSettings
from holdfast_controller.decide.job_state import JobEvent
from holdfast_controller.decide.notices import GATHERING, TRIES, Message, NoticeKind
from holdfast_controller.ledger import EntryKind
from holdfast_controller.runs.check_lines import FAILED, WARNING
from holdfast_controller.runs.doctor import notifications_line
from holdfast_controller.runs.notifier import Notifier, send_test, sending_problem
from holdfast_controller.runs.repository_space import SpaceWatch
from holdfast_controller.runs.sending import Sent
from holdfast_controller.runs.vcenters import Vcenters
from holdfast_controller.runs.world import World
from holdfast_controller.store.audit import AuditTrail
from holdfast_controller.store.catalogue import Catalogue, PointRow
from holdfast_controller.store.inventory import InventoryTable
from holdfast_controller.store.job_figures import JobFigures
from holdfast_controller.store.jobs import JobRow, JobTable
from holdfast_controller.store.ledger import LedgerTable
from holdfast_controller.store.new_jobs import NewJob
from holdfast_controller.store.notices import NoticeTable
from holdfast_controller.store.policies import PolicyChange, PolicyTable
from holdfast_controller.store.policy_slots import PolicySlot, PolicySlotTable
from holdfast_controller.store.protection import Protection
from holdfast_controller.store.runs import RunTable
from holdfast_controller.store.schema import open_database
from holdfast_controller.store.secrets import SecretSeal
from holdfast_controller.store.vcenters import VcenterTable
from holdfast_lab.server import RunningLab
from support.many_vms import add_point, add_vcenter, add_vms
from support.notification_receivers import http_receiver, silent_receiver
from support.one_process import OneProcess, one_process
from support.policies import policy

A_MOMENT = timedelta(seconds=1)


@dataclass
class LaterClock(SystemClock):
    """The machine's clock, and as much later as a test says."""

    later: timedelta = timedelta(0)

    def now(self) -> datetime:
        return super().now() + self.later


@dataclass
class Desk:
    """A notifier that a test drives, with a database of its own; ``refused``: addresses that take nothing."""

    around: World
    folder: Path
    clock: LaterClock = field(default_factory=LaterClock)
    settings: NotificationSettings = field(default_factory=NotificationSettings)
    sent: list[tuple[str, Message]] = field(default_factory=list)
    refused: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.database = open_database(self.folder / "controller.sqlite")
        self.urls("json://one/")
        self.settings = msgspec.structs.replace(self.settings, urls_file=str(self.folder / "urls"))
        self.look()  # what was before it began is not told

    def urls(self, *urls: str) -> None:
        path = self.folder / "urls"
        path.write_text("\n".join(urls))
        path.chmod(0o600)

    @property
    def world(self) -> World:
        configuration = msgspec.structs.replace(
            self.around.configuration, notifications=self.settings
        )
        database, clock, seal = self.database, SystemClock(), SecretSeal(Secret(bytes(32)))
        return replace(
            self.around,
            clock=self.clock,
            configuration=configuration,
            jobs=JobTable(database, clock),
            job_figures=JobFigures(database),
            runs=RunTable(database),
            ledger=LedgerTable(database, clock),
            catalogue=Catalogue(database),
            protection=Protection(database),
            policies=PolicyTable(database, clock, AuditTrail(database, clock)),
            policy_slots=PolicySlotTable(database, self.clock),
            vcenters=Vcenters(
                table=VcenterTable(database, clock, seal),
                inventory=InventoryTable(database),
                clock=clock,
            ),
            notices=NoticeTable(database, seal),
        )

    def notifier(self) -> Notifier:
        """As after a restart: nothing is kept in memory."""
        space = SpaceWatch(self.world)
        space.look()
        return Notifier(self.world, space, sending=self._send)

    def look(self, *, later: timedelta = timedelta(0)) -> list[tuple[NoticeKind, str]]:
        """What is told now: kind and first line."""
        self.clock.later += later
        before = len(self.sent)
        notifier = self.notifier()
        notifier.look()
        notifier.deliver()
        return [(each.kind, each.body.splitlines()[0]) for _, each in self.sent[before:]]

    def job(self, subject: str, end: JobEvent = JobEvent.END_FAILED) -> JobRow:
        """A backup that has come to this end."""
        jobs = self.world.jobs
        run = jobs.create_run(
            kind="backup", request={}, jobs=[NewJob(kind="backup", subject=subject)]
        )
        (job,) = jobs.jobs_of_run(run)
        disk = DiskResult(device_key=2000, transport="nfc", read_bytes=1 << 20)
        jobs.set_result(job.job_id, error=None, disks=[disk])
        for event in (JobEvent.QUEUE, JobEvent.START, JobEvent.CLEAN, end):
            jobs.advance(job.job_id, event)
        return jobs.job(job.job_id)

    def vm_with_point(self) -> PointRow:
        """A VM of the inventory that was backed up just now."""
        add_vcenter(self.database)
        add_vms(self.database, range(2), taken_at=self.clock.now())
        return add_point(self.database, 0, self.clock.now())

    def cannot_begin(self, why: str = "no proxy agent is connected") -> PolicySlot:
        """A policy's run that is due now and cannot begin."""
        if not self.world.policies.policies():
            self.world.policies.change([PolicyChange(policy=policy(vms=("vm*",)))], actor="me")
        (stored,) = self.world.policies.policies()
        moment = PolicySlot(
            policy_id=stored.policy_id, slot=self.clock.now(), calendar="0 22 * * *", told=why
        )
        self.world.policy_slots.cannot_begin(moment)
        return moment

    def _send(self, message: Message, urls: Sequence[Secret]) -> list[Sent]:
        answers = []
        for url in (each.reveal().decode() for each in urls):
            if url in self.refused:
                answers.append(Sent(name="***", error="gone away"))
            else:
                self.sent.append((url, message))
                answers.append(Sent(name="***", error=""))
        return answers


@pytest.fixture(scope="module")
def around(tmp_path_factory: pytest.TempPathFactory, lab: RunningLab) -> Iterator[OneProcess]:
    """What is around the tables that these tests are about."""
    with one_process(tmp_path_factory.mktemp("around"), lab) as ready:
        yield ready


@pytest.fixture
def desk(around: OneProcess, tmp_path: Path) -> Iterator[Desk]:
    made = Desk(around.world, tmp_path)
    yield made
    made.database.close()


def test_a_run_is_told_with_what_it_did_and_a_failure_with_its_reason(desk: Desk) -> None:
    job = desk.job("web", JobEvent.END_DONE)
    ((kind, line),) = desk.look()
    assert kind is NoticeKind.DIGEST
    assert line.startswith(f"backup {job.run_id}: 1 done; read 1.0 MiB, stored 0 B; took ")
    desk.job("db")
    told = desk.look(later=GATHERING)
    assert [kind for kind, _ in told] == [NoticeKind.FAILURE, NoticeKind.DIGEST]
    assert told[0][1].startswith("backup of db: failed (job ")
    assert "1 failed" in told[1][1] and "not done: db" in told[1][1]
    assert desk.look(later=timedelta(days=3)) == []


def test_a_job_that_somebody_cancelled_is_no_failure(desk: Desk) -> None:
    desk.job("web", JobEvent.END_CANCELLED)
    assert [kind for kind, _ in desk.look()] == [NoticeKind.DIGEST]


def test_a_run_that_cannot_begin_is_told_once_when_it_was_tried_for_an_hour(desk: Desk) -> None:
    moment = desk.cannot_begin()
    assert desk.look() == []
    desk.clock.later += timedelta(minutes=50)
    desk.world.policy_slots.cannot_begin(replace(moment, told="vCenter does not answer"))
    assert desk.look() == [], "another reason is no other run"
    ((kind, line),) = desk.look(later=timedelta(minutes=11))
    assert kind is NoticeKind.FAILURE
    assert line.startswith("policy gold: its run of ")
    assert line.endswith(" cannot begin: vCenter does not answer")
    assert "holdfast doctor" in desk.sent[-1][1].body
    # it is tried for days, and what was told a day ago is forgotten
    for _ in range(3):
        desk.world.policy_slots.cannot_begin(replace(moment, told="no proxy agent is connected"))
        assert desk.look(later=timedelta(days=1)) == []
    desk.cannot_begin()
    ((kind, _),) = desk.look(later=timedelta(minutes=61))
    assert kind is NoticeKind.FAILURE, "the next moment is another run"


def test_a_run_that_began_after_all_is_not_told_as_one_that_cannot(desk: Desk) -> None:
    desk.world.policy_slots.take(replace(desk.cannot_begin(), run_id="r1"))
    assert desk.look(later=timedelta(hours=2)) == []
    desk.cannot_begin()
    desk.clock.later += timedelta(minutes=30)
    desk.world.policy_slots.take(replace(desk.cannot_begin(), run_id="r2", missed=1))
    assert desk.look(later=timedelta(hours=2)) == [], "the next run stood for it"


def test_runs_that_could_not_begin_while_nobody_was_to_be_told_are_no_news_but_the_newest(
    desk: Desk,
) -> None:
    for _ in range(4):
        desk.cannot_begin()
        desk.clock.later += timedelta(days=2)
    desk.look()
    assert [each.title.rpartition(": ")[2] for _, each in desk.sent] == [
        "a job or run did not end well"
    ]


def test_failures_that_come_close_together_are_one_message(desk: Desk) -> None:
    desk.job("web")
    assert len(desk.look()) == 2  # and its run
    for number in range(30):
        desk.job(f"vm{number}")
    assert desk.look(later=A_MOMENT) == []
    told = desk.look(later=GATHERING)
    assert [kind for kind, _ in told] == [NoticeKind.FAILURE, NoticeKind.DIGEST]
    assert "30 jobs or runs did not end well" in desk.sent[-2][1].title
    assert desk.look(later=timedelta(days=2)) == []


def test_a_debt_is_told_once_and_again_while_it_lasts(desk: Desk) -> None:
    ledger = desk.world.ledger
    entry = ledger.intend(
        EntryKind.SNAPSHOT,
        run_id=RunId("r"),
        job_id=JobId("j"),
        vcenter_id="vc",
        facts={"vm_name": "web"},
    )
    assert desk.look() == []
    ledger.debt(entry, "the host is away")
    ((kind, line),) = desk.look()
    assert kind is NoticeKind.DEBT
    assert line.startswith("our snapshot of VM web, since ") and "the host is away" in line
    assert desk.look(later=timedelta(hours=23)) == []
    assert [kind for kind, _ in desk.look(later=timedelta(hours=1))] == [NoticeKind.DEBT]
    ledger.gone(entry)
    assert desk.look(later=timedelta(days=2)) == []


def test_a_vm_without_a_young_good_point_is_told_and_one_that_never_had_one_is_not(
    desk: Desk,
) -> None:
    desk.vm_with_point()
    assert desk.look(later=timedelta(hours=25, minutes=50)) == []
    ((kind, line),) = desk.look(later=timedelta(minutes=12))
    assert kind is NoticeKind.MISSING_SUCCESS
    assert line.startswith("vm00000 (main): last good point ")
    desk.settings = msgspec.structs.replace(desk.settings, missing_after_hours=0)
    assert desk.look(later=timedelta(days=30)) == []


def test_a_policys_promise_goes_before_the_figure_for_all(desk: Desk) -> None:
    desk.vm_with_point()
    promising = policy(vms=("vm*",), promise="5d")
    desk.world.policies.change([PolicyChange(policy=promising)], actor="me")
    assert desk.look(later=timedelta(days=4)) == []
    told = desk.look(later=timedelta(days=1, minutes=1))
    assert [kind for kind, _ in told] == [NoticeKind.MISSING_SUCCESS]
    first, second = desk.sent[-1][1].body.splitlines()[:2]
    assert first.startswith("vm00000 (main): last good point ")
    assert second.startswith("vm00001 (main): no good point; policy gold promises a younger one")


def test_a_chain_in_doubt_and_a_full_repository_are_told(desk: Desk) -> None:
    point = desk.vm_with_point()
    desk.world.catalogue.doubt_tracking(
        point.lineage_id, "it was caught", suspects=[point.point_id]
    )
    assert desk.look() == [
        (NoticeKind.MISSING_SUCCESS, "vm00000 (main): no good point"),
        (NoticeKind.SUSPECT, "vm00000: it was caught; points in doubt: 1"),
    ]
    desk.settings = msgspec.structs.replace(desk.settings, repository_free_bytes_min=1 << 60)
    ((kind, line),) = desk.look()
    assert kind is NoticeKind.REPOSITORY_FULL
    assert line.endswith("should be")


def test_what_nobody_wants_to_hear_is_not_sent_now_or_later(desk: Desk) -> None:
    desk.settings = msgspec.structs.replace(desk.settings, events=("failure",))
    desk.job("web")
    assert [kind for kind, _ in desk.look()] == [NoticeKind.FAILURE]
    desk.settings = msgspec.structs.replace(desk.settings, events=("failure", "digest"))
    assert desk.look(later=GATHERING) == []


def test_what_ended_while_nobody_was_to_be_told_is_no_news(desk: Desk) -> None:
    desk.job("web")
    assert desk.look(later=timedelta(days=1, minutes=1)) == []


def test_an_address_that_takes_nothing_gets_it_later_and_the_others_once(desk: Desk) -> None:
    desk.urls("json://one/", "json://two/")
    desk.refused = {"json://two/"}
    desk.job("web")
    assert len(desk.look()) == 2
    assert {url for url, _ in desk.sent} == {"json://one/"}
    assert "gone away" in sending_problem(desk.world)
    assert desk.look(later=A_MOMENT) == []
    desk.refused = set()
    assert len(desk.look(later=TRIES[0])) == 2
    assert [url for url, _ in desk.sent] == ["json://one/"] * 2 + ["json://two/"] * 2
    assert sending_problem(desk.world) == ""


def test_a_service_that_is_gone_for_good_is_tried_so_often_and_no_more(desk: Desk) -> None:
    desk.refused = {"json://one/"}
    desk.job("web")
    for wait in (timedelta(0), *TRIES, timedelta(days=1), timedelta(days=1)):
        desk.look(later=wait)
    counts = desk.world.notices.counts()
    assert (counts.waiting, counts.given_up) == (0, 2)
    assert "2 were given up" in sending_problem(desk.world)
    desk.refused = set()
    assert desk.look(later=timedelta(days=1)) == []


def test_addresses_are_read_anew_and_their_loss_is_told(desk: Desk) -> None:
    assert notifications_line(desk.world).detail == "addresses: 1"
    (desk.folder / "urls").unlink()
    assert notifications_line(desk.world).state == FAILED
    desk.job("web")
    assert desk.look() == []
    assert "cannot be read" in sending_problem(desk.world)
    desk.urls("json://new/")
    assert notifications_line(desk.world).state == WARNING
    assert len(desk.look(later=TRIES[0])) == 2
    assert {url for url, _ in desk.sent} == {"json://new/"}


def test_the_database_holds_no_address(desk: Desk) -> None:
    desk.urls("json://me:s3cret-t0ken@host.example/", "json://two/")
    desk.refused = {"json://two/"}
    desk.job("web")
    assert len(desk.look()) == 2
    rows = desk.database.execute("SELECT * FROM messages")
    assert len(rows) == 2
    assert "s3cret" not in repr(rows) and "host.example" not in repr(rows)


@pytest.mark.long  # it waits for its limit
def test_a_backup_goes_on_while_a_notification_hangs(desk: Desk, around: OneProcess) -> None:
    with silent_receiver() as silent:
        desk.urls(silent.url)
        desk.job("db")
        space = SpaceWatch(desk.world)
        notifier = Notifier(desk.world, space)
        notifier.start()
        assert str(around.back_up("web").state) == "done"
        assert desk.world.notices.counts().last_error == ""  # it still hangs


@pytest.mark.long
def test_a_test_message_is_sent_to_a_real_receiver(desk: Desk) -> None:
    with http_receiver() as receiver:
        desk.urls(receiver.url)
        (sent,) = send_test(desk.settings)
        assert sent.error == ""
        assert receiver.titles()[0].endswith(": a test")
    with pytest.raises(ConfigurationError, match="no notification address is set"):
        send_test(NotificationSettings())
