"""Two writers on one directory; one of them, a process of its own, stands still past its lease."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from holdfast_common.repository.check import check_data
from holdfast_common.repository.directory_store import DirectoryStore
from holdfast_common.repository.lease import LEASE_SECONDS
from holdfast_common.repository.points import list_points
from holdfast_common.repository.recipients import key_file_recipient
from support.pruning import Pruner
from support.repositories import BLOCK, Repository, authorise, new_repository, patterned
from support.suspended_writer import KEY_FILE, SIGNING_KEY

TESTS = Path(__file__).parents[1]


class Later(DirectoryStore):
    """The same directory, some time later by the storage's clock."""

    later = timedelta()

    def storage_time(self) -> datetime | None:
        found = super().storage_time()
        return None if found is None else found + self.later


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    DirectoryStore.create(tmp_path / "repository").close()
    made = new_repository(
        Later.open(tmp_path / "repository"),
        recipients=[key_file_recipient(KEY_FILE, label="controller")],
    )
    authorise(made, Ed25519PrivateKey.from_private_bytes(SIGNING_KEY), agent_id="proxy-2")
    made.clock.moment = datetime.now(UTC)
    return made


def start(repository: Repository, job_id: str) -> subprocess.Popen[str]:
    store = repository.store
    assert isinstance(store, DirectoryStore)
    return subprocess.Popen(
        [sys.executable, "-m", "support.suspended_writer", str(store.root), job_id],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(TESTS)},
    )


def stopped(process: subprocess.Popen[str]) -> None:
    _, status = os.waitpid(process.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status), status


def names(repository: Repository) -> list[str]:
    listed = list_points(repository.store, repository.keys)
    return [point.manifest.job_id for point in listed.points]


def time_passes(repository: Repository, seconds: float) -> None:
    assert isinstance(repository.store, Later)
    repository.clock.advance(seconds)
    repository.store.later += timedelta(seconds=seconds)


def test_a_process_that_stood_still_past_its_lease_never_shows_its_point(
    repository: Repository,
) -> None:
    pruner = Pruner.of(repository)
    image = patterned(8 * BLOCK, "kept")
    kept = repository.backup(image, job_id=None)
    repository.store.delete(repository.backup(patterned(4 * BLOCK, "gone")).name)
    process = start(repository, "SUSPENDED")
    try:
        stopped(process)
        assert pruner.round().fence == 1
        waits = pruner.round(grace=timedelta())
        assert waits.waiting is not None, "its lease is alive"
        assert [lease.record and lease.record.job_id for lease in waits.waiting.writers] == [
            "SUSPENDED"
        ]
        beside = repository.backup(patterned(8 * BLOCK, "beside"))
        time_passes(repository, LEASE_SECONDS + 3600)
        assert pruner.round(grace=timedelta()).deleted > 0
        os.kill(process.pid, signal.SIGCONT)
        output, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert output.startswith("lease_expired"), output
    assert names(repository) == [kept.manifest.job_id, beside.manifest.job_id]
    listed = list_points(repository.store, repository.keys)
    assert [item.code for item in listed.unusable] == ["point_voided"], "it was put, and is void"
    time_passes(repository, 3600)
    pruner.round(grace=timedelta())
    time_passes(repository, 3600)
    pruner.round(grace=timedelta())
    assert not list_points(repository.store, repository.keys).unusable, "and swept"
    assert repository.restored(kept) == image
    report = check_data(repository.store, repository.keys, segment_keys=repository.keys)
    assert report.is_clean, report.damaged


def test_a_process_that_stood_still_for_a_moment_is_waited_for(repository: Repository) -> None:
    pruner = Pruner.of(repository)
    repository.store.delete(repository.backup(patterned(4 * BLOCK, "gone")).name)
    process = start(repository, "MOMENT")
    try:
        stopped(process)
        pruner.round()
        time_passes(repository, LEASE_SECONDS - 60)
        assert pruner.round(grace=timedelta()).waiting is not None
        os.kill(process.pid, signal.SIGCONT)
        output, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert output.strip() == "acknowledged"
    time_passes(repository, 3600)
    assert pruner.round(grace=timedelta()).deleted > 0
    assert names(repository) == ["MOMENT"]
