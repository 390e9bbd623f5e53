"""What this agent says in its session: our values -> messages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from holdfast_agent.capabilities import Reach
from holdfast_agent.running_attempt import (
    AttemptState,
    CommitAsked,
    Posted,
    ProgressMade,
    ResultReady,
    StateChanged,
)
from holdfast_common.clock import SystemClock
from holdfast_common.job_spec import Attempt
from holdfast_common.units import KIB
from holdfast_common.wire import job_pb2, session_pb2
from holdfast_common.wire_codec.results import damage_pieces, job_result_to_message
from holdfast_common.wire_codec.values import (
    attempt_to_message,
    error_to_message,
    progress_to_message,
)

# whole disks: back up, restore, verify, check, list; and reading no faster than it is told
FEATURES: Final = frozenset({"image-1", "rate-1"})
REQUIRED_FEATURES: Final = frozenset({"image-1"})
RESULT_PART_BYTES: Final = 512 * KIB  # messages stay below 1 MiB

_STATES = {
    AttemptState.ACCEPTED: session_pb2.AGENT_JOB_STATE_ACCEPTED,
    AttemptState.RUNNING: session_pb2.AGENT_JOB_STATE_RUNNING,
    AttemptState.COMMITTING: session_pb2.AGENT_JOB_STATE_COMMITTING,
    AttemptState.FINISHED: session_pb2.AGENT_JOB_STATE_FINISHED,
    AttemptState.REFUSED: session_pb2.AGENT_JOB_STATE_REFUSED,
}


def hello_message(
    *,
    boot_id: str,
    role: str,
    reach: Reach,
    running: Sequence[tuple[Attempt, AttemptState]],
    results: Sequence[Attempt],
) -> session_pb2.FromAgent:
    """The first message of a session."""
    hello = session_pb2.Hello(
        boot_id=boot_id,
        features=sorted(FEATURES),
        required_features=sorted(REQUIRED_FEATURES),
        role=role,
        running=[
            session_pb2.RunningJob(attempt=attempt_to_message(attempt), state=_STATES[state])
            for attempt, state in running
        ],
        results=[attempt_to_message(attempt) for attempt in results],
        capabilities=session_pb2.Capabilities(
            transports=[kind.value for kind in reach.transports],
            datastores=[
                session_pb2.DatastoreReach(datastore_id=found.datastore_id, writable=found.writable)
                for found in reach.datastores
            ],
            repository_ids=reach.repositories,
            vm_bios_uuid=reach.vm_bios_uuid,
            restore_folders=reach.restore_folders,
            repair_folders=reach.repair_folders,
            host_name=reach.host_name,
            version=reach.version,
            mac_addresses=reach.mac_addresses,
            unix_ms=int(SystemClock().now().timestamp() * 1000),
        ),
    )
    return session_pb2.FromAgent(hello=hello)


def heartbeat_message(number: int) -> session_pb2.FromAgent:
    """A sign of life."""
    return session_pb2.FromAgent(heartbeat=session_pb2.Heartbeat(number=number))


def posted_messages(posted: Posted) -> Iterator[session_pb2.FromAgent]:
    """What a job's thread posted: one message, or several for a result with long lists."""
    if isinstance(posted, ResultReady):
        yield from _result_messages(posted)
    else:
        yield _posted_message(posted)


def _posted_message(posted: StateChanged | ProgressMade | CommitAsked) -> session_pb2.FromAgent:
    match posted:
        case StateChanged():
            state = session_pb2.JobState(
                attempt=attempt_to_message(posted.attempt), state=_STATES[posted.state]
            )
            if posted.error is not None:
                state.error.CopyFrom(error_to_message(posted.error))
            return session_pb2.FromAgent(job_state=state)
        case ProgressMade():
            return session_pb2.FromAgent(
                progress=progress_to_message(posted.attempt, posted.report)
            )
        case CommitAsked():
            return session_pb2.FromAgent(
                commit_request=session_pb2.CommitRequest(
                    attempt=attempt_to_message(posted.attempt),
                    manifest_digest=posted.manifest_digest,
                )
            )


def _result_messages(posted: ResultReady) -> Iterator[session_pb2.FromAgent]:
    """The result without its lists, then pieces of them; the controller merges them in order."""
    part = job_result_to_message(posted.result)
    if part.ByteSize() > RESULT_PART_BYTES:
        listed = [job_pb2.JobResult(points=[point]) for point in part.points]
        listed += [
            job_pb2.JobResult(damages=[piece])
            for damage in part.damages
            for piece in damage_pieces(damage)
        ]
        part.ClearField("points")
        part.ClearField("damages")
        length = part.ByteSize()
        for entry in listed:
            if length + entry.ByteSize() > RESULT_PART_BYTES:
                yield _finished(posted.attempt, part, more=True)
                part = job_pb2.JobResult(outcome=part.outcome)
                length = 0
            part.MergeFrom(entry)
            length += entry.ByteSize()
    yield _finished(posted.attempt, part, more=False)


def _finished(attempt: Attempt, part: job_pb2.JobResult, *, more: bool) -> session_pb2.FromAgent:
    finished = session_pb2.JobFinished(attempt=attempt_to_message(attempt), result=part, more=more)
    return session_pb2.FromAgent(job_finished=finished)
