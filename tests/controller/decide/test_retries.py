from __future__ import annotations

import pytest

from holdfast_controller.decide.job_state import ENDED, JobState
from holdfast_controller.decide.retries import RetryKind, retry_kind


@pytest.mark.parametrize(
    ("state", "after_it_began", "before"),
    [
        (JobState.DONE, None, None),
        (JobState.PARTIAL, RetryKind.SKIPPED, RetryKind.SKIPPED),
        (JobState.FAILED, RetryKind.FAILED, RetryKind.NOT_STARTED),
        (JobState.INTERRUPTED, RetryKind.FAILED, RetryKind.NOT_STARTED),
        (JobState.CANCELLED, None, RetryKind.NOT_STARTED),
    ],
)
def test_an_end_says_what_may_be_tried_again(
    state: JobState, after_it_began: RetryKind | None, before: RetryKind | None
) -> None:
    assert retry_kind(state, began=True) == after_it_began
    assert retry_kind(state, began=False) == before


def test_what_has_not_ended_is_not_tried_again() -> None:
    for state in frozenset(JobState) - ENDED:
        assert retry_kind(state, began=True) is None
