from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from holdfast_agent.pipelines.pipeline_table import PIPELINES
from holdfast_common.errors import TimedOut
from holdfast_common.identity import PointId
from holdfast_common.job_spec import CheckRepository, ListPoints, Work
from holdfast_common.repository import mount_probe
from support.backup_jobs import LINEAGE, Site, make_site
from support.hanging_mount import hanging_mount

POINT = PointId("01HZZZZZZZZZZZZZZZZZZZZZZZ")
WORKS: dict[str, Callable[[Site], Work]] = {
    "backup": lambda site: site.backup_work(),
    "restore": lambda site: site.restore_work(POINT, {2000: site.file_ticket("r.vmdk")}),
    "read back": lambda site: site.verify_work(POINT, {2000: site.file_ticket("r.vmdk")}),
    "check": lambda site: CheckRepository(
        read_data=True, point_ids=(), keys=(site.repository.reader_keys(LINEAGE),)
    ),
    "list": lambda site: ListPoints(keys=(site.repository.reader_keys(LINEAGE),)),
}


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setattr(mount_probe, "ANSWER_SECONDS_MAX", 0.2)
    site = make_site(tmp_path)
    site.make_disk(2000, b"data" * 16384)
    with hanging_mount(site.repository.folder):
        yield site


@pytest.mark.parametrize("kind", WORKS)
def test_a_job_ends_in_time_when_the_repositorys_mount_hangs(site: Site, kind: str) -> None:
    work = WORKS[kind](site)
    with pytest.raises(TimedOut, match="does not answer") as caught:
        PIPELINES[type(work)](site.spec(work), site.context())
    assert caught.value.exit_status == 124
    assert caught.value.facts["path"] == str(site.repository.folder)
    assert list((site.root / "restores").iterdir()) == []
