"""All waits of the agents' sessions."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionTiming:
    """Seconds (but for the count of heartbeats); as PROTOCOL has them. Tests bring shorter ones."""

    heartbeat: float = 10.0
    job_lease: float = 45.0
    lost_after_lease: float = 15.0
    silence_heartbeats: float = 2.5  # of so many none was heard: the stream is dead
    hello: float = 10.0
    start_answer: float = 30.0
    seen_noted: float = 60.0
