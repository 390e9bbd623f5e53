"""`holdfast-agent run`: puts runner and session together, watches configuration and certificate.

The main thread waits for a stop; the session has a thread, each job has one, the watch has one.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Final

from holdfast_agent.capabilities import reach_of
from holdfast_agent.certificates import (
    AgentIdentity,
    load_identity,
    new_request,
    save_certificate,
)
from holdfast_agent.configuration import AgentConfiguration, read_configuration
from holdfast_agent.controller_calls import ChannelCalls
from holdfast_agent.job_runner import JobRunner, PipelineTable
from holdfast_agent.ledger import AgentLedger
from holdfast_agent.repository_memory import RepositoryMemory
from holdfast_agent.running_attempt import LEASE_WAIT_SECONDS, Surroundings
from holdfast_agent.session import AgentSession, AgentTiming, Dialled
from holdfast_common.clock import Clock, SystemClock
from holdfast_common.errors import ConfigurationError, HoldfastError
from holdfast_common.file_lock import only_holder
from holdfast_common.places import Places, private_folder
from holdfast_common.pulses import Pulses
from holdfast_common.service_manager import ServiceManager
from holdfast_common.trust.authority import renewal_is_due
from holdfast_common.trust.channels import KEEPALIVE, Keepalive

log = logging.getLogger(__name__)

LAST_CHANCE: Final = timedelta(
    hours=12
)  # before a certificate's end jobs no longer hold up a reconnect


@dataclass(frozen=True, slots=True, kw_only=True)
class DaemonTiming:
    """Waits, in seconds."""

    session: AgentTiming = field(default_factory=AgentTiming)
    watch: float = 5.0
    renewal_again: float = 600.0
    jobs_stop: float = 60.0  # to the next block boundary; a restore closes its disks first
    session_stop: float = 15.0
    lease_wait: float = LEASE_WAIT_SECONDS


@contextmanager
def only_agent(places: Places) -> Iterator[None]:
    """Be the only running agent of these places while it is held: two would take each other's jobs.

    Raises: Locked.
    """
    with only_holder(
        private_folder(places.agent_state) / "agent.lock",
        problem="this agent runs here already",
        advice="stop the other `holdfast-agent run` first",
    ):
        yield


class AgentDaemon:
    """One agent at work. `run` returns when ``stop`` is set and the jobs have ended."""

    def __init__(
        self,
        places: Places,
        *,
        pipelines: Callable[[], PipelineTable],
        stop: threading.Event,
        timing: DaemonTiming | None = None,
        keepalive: Keepalive = KEEPALIVE,
        clock: Clock | None = None,
        manager: ServiceManager | None = None,
    ) -> None:
        """Raises: ConfigurationError when the agent was not enrolled."""
        self._places = places
        self._stop = stop
        self._timing = timing or DaemonTiming()
        self._clock = clock or SystemClock()
        self._manager = manager or ServiceManager()
        self._pulses = Pulses(self._clock)
        self._told_manager = ""
        self._identity = load_identity(places.agent_state)
        self._configuration = _ConfigurationFile(places.agent_configuration)
        self._session_stop = threading.Event()
        self._renewal_due_at = 0.0
        self._renewed: AgentIdentity | None = None
        self._calls = ChannelCalls(self._session_stop)
        self.session = AgentSession(
            dialled=self._dialled,
            calls=self._calls,
            clock=self._clock,
            timing=self._timing.session,
            keepalive=keepalive,
            pulses=self._pulses,
        )
        self.runner = JobRunner(
            surroundings=Surroundings(
                agent_id=self._identity.agent_id,
                signing_key=self._identity.signing_key,
                calls=self._calls,
                post=self.session.post,
                clock=self._clock,
                repositories=RepositoryMemory(places.agent_state / "index"),
                lease_wait_seconds=self._timing.lease_wait,
            ),
            configuration=lambda: self._configuration.current,
            ledger=AgentLedger(places.agent_state / "attempts"),
            pipelines=pipelines,
        )

    def run(self) -> None:
        """Until ``stop`` is set. Raises: HoldfastError when the session's thread died by a bug."""
        session = threading.Thread(
            target=self.session.run,
            args=(self.runner, self._session_stop),
            name="session",
            daemon=True,
        )
        session.start()
        self._manager.ready()
        while not self._stop.wait(self._watch_seconds):
            if not session.is_alive():  # whoever watches this process starts a sound one
                raise HoldfastError("a bug ended the session", advice="see the log, and report it")
            self._watch()
            self._tell_manager()
        self._manager.stopping()
        self.runner.stop()
        if not self.runner.wait_ended(self._timing.jobs_stop):
            log.error("jobs did not end in time; they will count as interrupted")
        self._session_stop.set()
        session.join(self._timing.session_stop)

    @property
    def _watch_seconds(self) -> float:
        every = self._manager.alive_every_seconds
        return min(self._timing.watch, every) if every else self._timing.watch

    def _tell_manager(self) -> None:
        """That the agent lives, and how it does. Not while a loop stands still: a new agent may do better."""
        missed = self._pulses.silent()
        if missed:
            log.error("the watchdog is not fed: loops stand still", extra={"loops": str(missed)})
        else:
            self._manager.alive()
        connected = "" if self.session.connected.is_set() else "not "
        status = (
            f"{connected}connected to {self._configuration.current.controller},"
            f" {len(self.runner.running())} jobs at work"
        )
        if status != self._told_manager:
            self._manager.status(status)
            self._told_manager = status

    def _watch(self) -> None:
        if self._configuration.changed():
            log.info("the configuration has changed")
            self.session.begin_again()
        now = self._clock.monotonic_seconds()
        if self._renewed is not None:
            self._use_renewed(self._renewed)
        elif now >= self._renewal_due_at and renewal_is_due(
            self._identity.peer, now=self._clock.now()
        ):
            self._renewal_due_at = now + self._timing.renewal_again
            self._renew()

    def _renew(self) -> None:
        if not self.session.connected.is_set():
            return
        try:
            pending = new_request()
            certificate_pem = self._calls.renew_certificate(pending.request_pem)
            save_certificate(
                self._places.agent_state,
                pending,
                certificate_pem=certificate_pem,
                authority_pem=self._identity.credentials.authority_pem,
            )
            self._renewed = load_identity(self._places.agent_state)
        except HoldfastError as error:
            log.warning("the certificate could not be renewed", extra={"error": error.line()})
            return
        log.info("the certificate was renewed", extra={"ends_at": self._renewed.peer.ends_at})

    def _use_renewed(self, renewed: AgentIdentity) -> None:
        """Dial anew with the new certificate once no job is disturbed by that, but not too late."""
        ends_soon = self._clock.now() >= self._identity.peer.ends_at - LAST_CHANCE
        if self.runner.running() and not ends_soon:
            return
        self._identity = renewed
        self._renewed = None
        self.session.begin_again()

    def _dialled(self) -> Dialled:
        if self._renewed is not None:  # the session ended for another reason: use it now
            self._identity, self._renewed = self._renewed, None
        configuration = self._configuration.current
        return Dialled(
            address=configuration.controller,
            identity=self._identity,
            reach=reach_of(configuration),
        )


class _ConfigurationFile:
    """agent.toml, read again when it changes; a broken one is not used, and said so."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen = self._stamp()
        self.current: AgentConfiguration = read_configuration(path)

    def changed(self) -> bool:
        """Whether there is a new configuration in use since the last call."""
        stamp = self._stamp()
        if stamp == self._seen:
            return False
        self._seen = stamp
        try:
            found = read_configuration(self._path)
        except ConfigurationError as error:
            log.exception("the new configuration is not used", extra={"error": error.line()})
            return False
        different, self.current = found != self.current, found
        return different

    def _stamp(self) -> tuple[int, int, int]:
        try:
            found = self._path.stat()
        except OSError:
            return (0, 0, 0)
        return (found.st_mtime_ns, found.st_ino, found.st_size)
