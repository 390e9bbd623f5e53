"""What a restore to a file would be refused for, asked before it is begun. Nothing is made."""

from __future__ import annotations

from holdfast_agent.pipelines.context import JobContext
from holdfast_agent.transports.restore_file import check_new_vmdk_file
from holdfast_common.job_result import JobResult, Outcome
from holdfast_common.job_spec import CheckNewFile, JobSpec


def check_new_file(spec: JobSpec, context: JobContext) -> JobResult:
    """Raises: Refused, TargetFailed."""
    work = spec.work
    assert isinstance(work, CheckNewFile)
    check_new_vmdk_file(work.ticket, context.configuration)
    return JobResult(outcome=Outcome.DONE)
