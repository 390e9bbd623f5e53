import pytest

from holdfast_common.errors import InvalidTransition
from holdfast_common.job_result import Outcome
from holdfast_controller.decide.job_state import (
    END_EVENTS,
    ENDED,
    TRANSITIONS,
    JobEvent,
    JobState,
    next_state,
)


def test_every_state_but_an_end_leads_somewhere_and_no_end_does() -> None:
    sources = {state for state, _ in TRANSITIONS}
    assert sources == set(JobState) - ENDED


def test_every_state_is_reached_and_every_event_is_used() -> None:
    assert set(TRANSITIONS.values()) | {JobState.PLANNED} == set(JobState)
    assert {event for _, event in TRANSITIONS} == set(JobEvent)


def test_every_outcome_ends_a_job_that_is_cleaning() -> None:
    for outcome in Outcome:
        assert next_state(JobState.CLEANING, END_EVENTS[outcome]) in ENDED


def test_every_unfinished_state_can_be_interrupted() -> None:
    for state in set(JobState) - ENDED:
        assert next_state(state, JobEvent.END_INTERRUPTED) is JobState.INTERRUPTED


def test_work_that_has_begun_never_ends_without_cleaning() -> None:
    for (state, event), target in TRANSITIONS.items():
        if target in ENDED and event is not JobEvent.END_INTERRUPTED:
            assert state in {
                JobState.PLANNED,
                JobState.QUEUED,
                JobState.CLEANING,
                JobState.COMMITTING,
            }


def test_an_unknown_transition_raises_with_the_story_of_the_job() -> None:
    with pytest.raises(InvalidTransition, match="planned -> queued"):
        next_state(JobState.QUEUED, JobEvent.COMMIT, story=["planned", "queued"])
