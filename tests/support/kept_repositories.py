"""A controller that keeps its repository by itself, on a morning that the test moves."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

import msgspec

from holdfast_common.clock import utc_text
from holdfast_common.identity import RunId
from holdfast_controller.configuration import KeepingSettings
from holdfast_controller.decide.policy import Policy
from holdfast_controller.decide.retention import RetentionRule
from holdfast_controller.runs.engine import Engine
from holdfast_controller.runs.keeping import Keeping
from holdfast_controller.runs.world import World
from holdfast_controller.store.jobs import JobRow
from holdfast_controller.store.keeping import KeepingSlot
from holdfast_lab.server import RunningLab
from support.one_process import OneProcess, guest_writes
from support.waiting import wait_until

SECONDS = 60.0
ALL_AT_SEVEN = """
[forget]
start = "0 7 * * *"
window = "mon-sun 07:00-12:00"
[prune]
start = "0 7 * * *"
window = "mon-sun 07:00-12:00"
grace_hours = 0
[scrub]
start = "0 7 * * *"
window = "mon-sun 07:00-12:00"
read_days = 3
[check]
start = "0 7 * * *"
window = "mon-sun 07:00-12:00"
read_days = 3
"""
ONLY = 'forget.start = "{forget}"\nprune.start = "{prune}"\nscrub.start = "{scrub}"\ncheck.start = "{check}"\n'


def only(task: str, window: str = "mon-sun 07:00-12:00") -> str:
    """This task at seven, and no other."""
    starts = dict.fromkeys(("forget", "prune", "scrub", "check"), "") | {task: "0 7 * * *"}
    return ONLY.format(**starts) + f'{task}.window = "{window}"\n'


@dataclass
class KeptRepository:
    """``now``: what the loop is told; the world's own clock stays the machine's."""

    holdfast: OneProcess
    settings: str = ALL_AT_SEVEN
    now: datetime = field(
        default_factory=lambda: (datetime.now(UTC) + timedelta(days=1)).replace(
            hour=6, minute=0, second=0, microsecond=0
        )
    )

    def __post_init__(self) -> None:
        self.engine = self.holdfast.engine
        self.keeping = Keeping(self.world, self.engine)
        self.keeping.look(self.now)  # from now on its calendars count

    @property
    def world(self) -> World:
        kept = msgspec.toml.decode(self.settings.encode(), type=KeepingSettings)
        world = self.holdfast.world
        configuration = msgspec.structs.replace(world.configuration, keeping=kept)
        return replace(world, configuration=configuration)

    def look(self, **later: float) -> None:
        """The loop looks; so much later."""
        self.now += timedelta(**later)
        self.keeping.look(self.now)

    def another_life(self) -> None:
        """The controller begins anew."""
        self.holdfast.world.stopping.clear()
        self.engine = Engine(self.holdfast.world)
        self.engine.reconciled()
        self.keeping = Keeping(self.world, self.engine)

    def slot(self, task: str) -> KeepingSlot:
        """The newest."""
        found = self.holdfast.world.keeping.last(task)
        assert found is not None, f"{task} was never due"
        return found

    def job(self, task: str) -> JobRow:
        """Of the newest slot's run, at its end."""
        (job,) = self.holdfast.world.jobs.jobs_of_run(RunId(self.slot(task).run_id))
        jobs = self.holdfast.world.jobs
        wait_until(lambda: jobs.job(job.job_id).ended, seconds=SECONDS, what=f"{task} ends")
        return jobs.job(job.job_id)

    def policy(self, *vms: str, name: str = "gold", keep_last: int) -> None:
        """Keeps so many points."""
        policy = Policy(
            name=name, vms=vms, start="0 22 * * *", retention=RetentionRule(keep_last=keep_last)
        )
        self.holdfast.world.policies.create(policy, actor="anna")

    def points(self, count: int, vm: str = "web", *, lab: RunningLab | None = None) -> list[str]:
        """Oldest first; each a day older than the next, as far as the catalogue knows."""
        found = []
        for _ in range(count):
            if lab is not None:
                guest_writes(lab, vm, 0, length=1 << 18)
            job = self.holdfast.back_up(vm)
            assert job.point_id is not None, job.error
            found.append(job.point_id)
        database = self.holdfast.world.catalogue._database
        with database.transaction() as connection:
            for days, point_id in enumerate(reversed(found)):
                at = utc_text(datetime.now(UTC) - timedelta(days=days, minutes=5))
                connection.execute(
                    "UPDATE points SET created_at = ? WHERE point_id = ?", (at, point_id)
                )
        return [str(each) for each in found]

    def known(self) -> set[str]:
        """Points that the catalogue has."""
        return {row.point_id for row in self.holdfast.world.catalogue.points()}

    def stored_bytes(self) -> int:
        """Of all packs."""
        packs = (self.holdfast.folder / "repository" / "packs").rglob("*")
        return sum(path.stat().st_size for path in packs if path.is_file())
