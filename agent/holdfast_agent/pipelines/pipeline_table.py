"""Every kind of work that an agent does, by the type of its description. Below the job runner."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from holdfast_agent.pipelines.backup_disks import back_up_disks
from holdfast_agent.pipelines.check_new_file import check_new_file
from holdfast_agent.pipelines.check_repository import check_repository
from holdfast_agent.pipelines.context import JobContext
from holdfast_agent.pipelines.list_points import list_points
from holdfast_agent.pipelines.repair_repository import repair_repository
from holdfast_agent.pipelines.restore_disks import restore_disks
from holdfast_agent.pipelines.verify_disks import verify_disks
from holdfast_common.job_result import JobResult
from holdfast_common.job_spec import (
    BackUpDisks,
    CheckNewFile,
    CheckRepository,
    JobSpec,
    ListPoints,
    RepairRepository,
    RestoreDisks,
    VerifyDisks,
    Work,
)

Pipeline = Callable[[JobSpec, JobContext], JobResult]

PIPELINES: Final[Mapping[type[Work], Pipeline]] = {
    BackUpDisks: back_up_disks,
    RestoreDisks: restore_disks,
    VerifyDisks: verify_disks,
    CheckRepository: check_repository,
    RepairRepository: repair_repository,
    ListPoints: list_points,
    CheckNewFile: check_new_file,
}
