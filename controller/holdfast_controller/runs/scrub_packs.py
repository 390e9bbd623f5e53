"""A scrub as a job: the controller itself compares packs with their own digests, a part at a time, round after round.

It needs no key and no proxy, so it sees the storage by another way than a check does. How far it came is written down:
whatever stops it, the next one goes on from there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Final

from holdfast_common.clock import utc_text
from holdfast_common.job_result import DamageFound, JobResult, Outcome
from holdfast_common.repository.directory_store import DirectoryStore
from holdfast_common.repository.hang_watch import (
    StopWhenGivenUp,
    watched_files,
    while_it_answers,
)
from holdfast_common.repository.mount_probe import check_answers
from holdfast_common.repository.reference_check import stored_packs
from holdfast_common.repository.scrub import scrub_packs
from holdfast_controller.decide.job_state import JobEvent
from holdfast_controller.runs.damage_text import told_damages
from holdfast_controller.runs.repository_verdict import note_damaged_packs
from holdfast_controller.runs.requests import ScrubRequest
from holdfast_controller.runs.world import World
from holdfast_controller.store import settings as names
from holdfast_controller.store.jobs import JobRow
from holdfast_controller.store.new_jobs import NewJob

SUBJECT: Final = "packs"
NOTE_PACKS: Final = 16  # a gigabyte: so much is read again after it was killed


class ScrubPacks:
    """The work of one such job."""

    def __init__(self, world: World, request: ScrubRequest) -> None:
        self._world = world
        self._request = request

    def plan(self) -> list[str]:
        """For people."""
        parts = self._request.parts
        which = f"the next of {parts} parts of the packs" if parts > 1 else "all packs"
        return [f"compare {which} with their own digests"]

    def new_job(self) -> NewJob:
        """The job's row."""
        return NewJob(kind="scrub", subject=SUBJECT)

    def __call__(self, job: JobRow) -> JobResult:
        """Ends as failed with code `integrity` when a pack is damaged."""
        world = self._world
        waited = StopWhenGivenUp()

        def check() -> None:
            waited.check()
            world.lifecycle.check(job.job_id)

        found: list[DamageFound] = []
        with world.lifecycle.cleaning(job.job_id):
            world.jobs.advance(job.job_id, JobEvent.TRANSFER)
            try:
                while_it_answers(
                    partial(self._compare, job, found, check=check), gave_up=waited.stop
                )
            finally:  # what it found before it was stopped is found
                result = JobResult(
                    outcome=Outcome.FAILED if found else Outcome.DONE, damages=tuple(found)
                )
                if found:
                    world.damages.keep(job.job_id, result)
                    note_damaged_packs(world, result, all_data=False)
        return told_damages(result, job.job_id)

    def _compare(self, job: JobRow, found: list[DamageFound], *, check: Callable[[], None]) -> None:
        world = self._world
        folder = world.keeper.folder
        check_answers(folder)
        with DirectoryStore.open(folder, files=watched_files(folder)) as store:
            packs = stored_packs(store)
            wanted = list(self._next_packs(packs))
            total = sum(length for _, length in wanted)
            done = 0
            for number, (digest, damaged) in enumerate(scrub_packs(store, wanted), start=1):
                check()
                # a prune may have taken it away since it was listed
                if damaged is not None and store.head(damaged.name) is not None:
                    found.append(DamageFound(object_name=damaged.name, problem=damaged.reason))
                done += packs[digest]
                if number % NOTE_PACKS == 0 or number == len(wanted):
                    world.settings.set(names.SCRUB_CURSOR, digest.hex())
                    world.jobs.set_progress(job.job_id, done_bytes=done, total_bytes=total)
            if not wanted or wanted[-1][0] == max(packs):
                self._end_round()
        world.jobs.note(job.job_id, "compared", f"{len(wanted)} packs of {len(packs)}")

    def _next_packs(self, packs: dict[bytes, int]) -> Iterator[tuple[bytes, int]]:
        """A part of them, by bytes, from where the last one ended; never beyond the round's end."""
        world = self._world
        cursor = bytes.fromhex(world.settings.get(names.SCRUB_CURSOR))
        if not cursor or not world.settings.get(names.SCRUB_ROUND_AT):
            world.settings.set(names.SCRUB_ROUND_AT, utc_text(world.clock.now()))
        part = -(-sum(packs.values()) // self._request.parts)
        taken = 0
        for digest in sorted(packs):
            if digest > cursor and taken < part:
                taken += packs[digest]
                yield digest, packs[digest]

    def _end_round(self) -> None:
        """Every pack that was there when it began, and is yet, was compared since."""
        settings = self._world.settings
        settings.set(names.SCRUBBED_AT, settings.get(names.SCRUB_ROUND_AT))
        settings.set(names.SCRUB_CURSOR, "")
