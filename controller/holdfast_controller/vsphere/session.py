"""The one owner of the login at one vCenter or host; every call of ours goes through `_invoke`.

A login that ended is replaced by a new stub and a new login, and the call that met it is made again
(it had no effect). What may have had an effect although its reply was lost is never simply made
again: `run_task` looks for the task and for the effect first. Blocking; called from many threads.
"""

from __future__ import annotations

import logging
import math
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol, TypeVar

from pyVmomi import VmomiSupport, vim, vmodl
from pyVmomi.SoapAdapter import SoapStubAdapter

from holdfast_common.clock import Clock, SystemClock
from holdfast_common.errors import (
    HoldfastError,
    Interrupted,
    SourceGone,
    VsphereUnavailable,
)
from holdfast_common.logs import Secret
from holdfast_common.retry import backoff_seconds
from holdfast_controller.vsphere import faults
from holdfast_controller.vsphere.foreign import Foreign, Reference
from holdfast_controller.vsphere.pinning import PinnedContext
from holdfast_controller.vsphere.seen_vms import SeenVms
from holdfast_controller.vsphere.task_watcher import TaskWatcher

log = logging.getLogger(__name__)

CONNECTION_TIMEOUT_SECONDS: Final = 120.0
KEEP_ALIVE_SECONDS: Final = 300.0  # vCenter ends a login after 30 idle minutes
PATIENCE_SECONDS: Final = 900.0  # a vCenter that is being restarted comes back within it
TASK_TIMEOUT_SECONDS: Final = 3600.0  # of one task, unless its caller knows better
LOGINS_OF_ONE_CALL_MAX: Final = 3
CONNECTIONS_KEPT: Final = 8
FIRST_VERSION: Final = "vim.version.version9"  # 5.5: what we ask the server's own version with

# Calls that may be made twice: they read, or their second effect is the same as their first.
REPEATABLE: Final = frozenset(
    {
        "RetrieveServiceContent",
        "CurrentTime",
        "RetrievePropertiesEx",
        "QueryChangedDiskAreas",
        "HttpNfcLeaseProgress",
        "HttpNfcLeaseGetManifest",
        "FindByInventoryPath",
        "FindAllByUuid",
    }
)
Value = TypeVar("Value")


@dataclass(frozen=True, slots=True, kw_only=True)
class VcenterAddress:
    """Where a vCenter or host is and which certificate it shows."""

    host: str
    port: int
    certificate_sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """Whom we log in as."""

    user_name: str
    password: Secret


class CallGate(Protocol):
    """Stands around every call; tests count, fail or lose calls here."""

    def before(self, method: str, moref: str) -> None:
        """Raises: an error of ours when the call is not to be made."""
        ...

    def after(self, method: str, moref: str) -> None:
        """Raises: an error of ours when the reply is to be lost."""
        ...


class OpenGate:
    """Lets everything pass."""

    def before(self, method: str, moref: str) -> None:
        """Nothing."""

    def after(self, method: str, moref: str) -> None:
        """Nothing."""


@dataclass(slots=True)
class SessionTroubles:
    """What went wrong with calls since the session began, and which calls were made. For people, not exact."""

    unanswered: int = 0
    logins_ended: int = 0
    calls: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class Login:
    """One login: its stub, the service's managed objects, and its number."""

    stub: Foreign
    content: Foreign
    number: int


class VsphereSession:
    """A lasting session at one vCenter or host. Close it, or use it in a ``with``."""

    def __init__(
        self,
        address: VcenterAddress,
        account: Account,
        *,
        clock: Clock | None = None,
        gate: CallGate | None = None,
        patience_seconds: float = PATIENCE_SECONDS,
        keep_alive_seconds: float = KEEP_ALIVE_SECONDS,
    ) -> None:
        self.address = address
        self.clock = clock or SystemClock()
        self.stop = threading.Event()
        self.patience_seconds = patience_seconds
        self.account = account
        self._gate = gate or OpenGate()
        self._keep_alive_seconds = keep_alive_seconds
        self._lock = threading.Lock()
        self._login: Login | None = None
        self._logins = 0
        self._keeper: threading.Thread | None = None
        self._tasks = TaskWatcher(self, patience_seconds=patience_seconds)
        self.seen_vms = SeenVms()
        self.troubles = SessionTroubles()

    def __enter__(self) -> VsphereSession:
        self.login()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- logging in and out ---------------------------------------------------------------

    def login(self) -> Login:
        """The present login; logs in when there is none.

        Raises: AuthenticationFailed, CertificateMismatch, VsphereUnavailable; Interrupted once closed.
        """
        with self._lock:
            if self._login is None:
                if self.stop.is_set():
                    raise Interrupted("the session at vSphere is closed")
                self._login = self._log_in()
                if self._keeper is None:
                    self._keeper = threading.Thread(
                        target=self._keep_alive, name="vSphere keep-alive", daemon=True
                    )
                    self._keeper.start()
            return self._login

    def close(self) -> None:
        """Log out and end the threads. Never raises an error of vSphere's."""
        self.stop.set()
        self._tasks.stop()
        with self._lock:
            login, self._login = self._login, None
        if login is None:
            return
        try:
            self._invoke(login, login.content.sessionManager, "Logout", {})
        except HoldfastError as error:
            log.info("logging out of vSphere failed", extra={"error": str(error)})
        login.stub.DropConnections()

    def content(self) -> Foreign:
        """The service's managed objects (they hold no login: names only)."""
        return self.login().content

    def collector(self) -> Foreign:
        """The service's own property collector."""
        return self.content().propertyCollector

    def cookie(self) -> str:
        """The present login's cookie header, for `/folder` requests of the controller itself."""
        return str(self.login().stub.cookie.partition(";")[0])

    @property
    def is_vcenter(self) -> bool:
        """False for a single host."""
        return str(self.content().about.apiType) == "VirtualCenter"

    # -- calls ------------------------------------------------------------------------------

    def call(self, target: Reference, method: str, **arguments: Foreign) -> Foreign:
        """Call a method by its wire name; ``target`` is a reference, whichever login it came with.

        A method of `REPEATABLE` is repeated while vSphere does not answer, for the session's
        patience; any other raises VsphereUnavailable, and may have had its effect.
        """
        if method in REPEATABLE:
            return self.patiently(lambda: self._call_logged_in(target, method, arguments))
        return self._call_logged_in(target, method, arguments)

    def call_in_login(self, target: Reference, method: str, **arguments: Foreign) -> Foreign:
        """One call that belongs to others of the same login. Raises: SessionLost when it ended."""
        login = self.login()
        try:
            return self._invoke(login, target, method, arguments)
        except faults.SessionLost:
            self._forget(login)
            raise

    def patiently(self, work: Callable[[], Value], *, seconds_max: float = math.inf) -> Value:
        """``work``, repeated with jittered back-off while vSphere is unavailable.

        Raises: the last error after the session's patience, or ``seconds_max``; Interrupted when it is closed.
        """
        deadline = self.clock.monotonic_seconds() + min(self.patience_seconds, seconds_max)
        waits = backoff_seconds(first=0.25, maximum=30.0, attempts=10_000)
        while True:
            try:
                return work()
            except VsphereUnavailable as error:
                wait = next(waits)
                if self.clock.monotonic_seconds() + wait > deadline:
                    raise
                log.info("vSphere does not answer; trying again", extra={"error": str(error)})
                if self.stop.wait(wait):
                    raise Interrupted("the session at vSphere is being closed") from error

    def in_one_login(self, work: Callable[[], Value]) -> Value:
        """``work`` made of `call_in_login` calls, started anew when the login ends in its middle."""
        for _ in range(LOGINS_OF_ONE_CALL_MAX):
            try:
                return self.patiently(work)
            except faults.SessionLost as error:
                lost = error
        raise lost

    def through_gate(self, name: str, subject: str, work: Callable[[], Value]) -> Value:
        """``work`` that talks to vSphere without SOAP, counted and failed like a call."""
        self._gate.before(name, subject)
        result = work()
        self._gate.after(name, subject)
        return result

    # -- tasks ------------------------------------------------------------------------------

    def wait_for_task(
        self, task: Reference, *, what: str, timeout_seconds: float = TASK_TIMEOUT_SECONDS
    ) -> Foreign:
        """The result of a task. Raises: its fault as an error of ours; TimedOut: it goes on."""
        watched = self._tasks.wait(task, timeout_seconds=timeout_seconds)
        if watched.values.get("info.state") == "error":
            fault = watched.values.get("info.error")
            raise faults.translated(fault, what=what)
        return watched.values.get("info.result")

    def wait_for_end(self, task: Reference, *, timeout_seconds: float) -> None:
        """Wait until a task ended, however; one that vSphere forgot has ended. Raises: TimedOut."""
        try:
            self._tasks.wait(task, timeout_seconds=timeout_seconds)
        except SourceGone:
            return

    # -- below: one login, one call -----------------------------------------------------------

    def _call_logged_in(
        self, target: Reference, method: str, arguments: Mapping[str, Foreign]
    ) -> Foreign:
        for _ in range(LOGINS_OF_ONE_CALL_MAX):
            login = self.login()
            try:
                return self._invoke(login, target, method, arguments)
            except faults.SessionLost as error:
                self._forget(login)
                lost = error
        raise lost

    def _invoke(
        self, login: Login, target: Reference, method: str, arguments: Mapping[str, Foreign]
    ) -> Foreign:
        """The one place where a call leaves. Raises: errors of ours only."""
        moref = str(target._moId)
        self._gate.before(method, moref)
        self.troubles.calls[method] += 1
        what = f"{method} on {moref}"
        bound = type(target)(moref, login.stub)
        try:
            result = getattr(bound, method)(**arguments)
        except vim.fault.NotAuthenticated as fault:
            self.troubles.logins_ended += 1
            raise faults.SessionLost("the login at vSphere ended", call=method) from fault
        except faults.CONNECTION_ERRORS as error:
            self.troubles.unanswered += 1
            raise faults.connection_error(error, what=what) from error
        except vmodl.MethodFault as error:
            raise faults.translated(error, what=what, moref=moref) from error
        self._gate.after(method, moref)
        return result

    def _forget(self, login: Login) -> None:
        with self._lock:
            if self._login is login:
                self._login = None
                log.info("the login at vSphere ended", extra={"host": self.address.host})

    def _log_in(self) -> Login:
        first = self._stub(FIRST_VERSION)
        self._logins += 1
        service = vim.ServiceInstance("ServiceInstance", None)
        content = self._invoke(
            Login(first, None, self._logins), service, "RetrieveServiceContent", {}
        )
        login = Login(self._stub(api_version(content.about)), content, self._logins)
        self._invoke(
            login,
            content.sessionManager,
            "Login",
            {
                "userName": self.account.user_name,
                "password": self.account.password.reveal().decode(),
            },
        )
        return login

    def _stub(self, version: str) -> Foreign:
        return SoapStubAdapter(
            host=self.address.host,
            port=self.address.port,
            version=version,
            poolSize=CONNECTIONS_KEPT,
            sslContext=PinnedContext(self.address.certificate_sha256),
            httpConnectionTimeout=CONNECTION_TIMEOUT_SECONDS,
        )

    def _keep_alive(self) -> None:
        while not self.stop.wait(self._keep_alive_seconds):
            try:
                service = vim.ServiceInstance("ServiceInstance", None)
                self._call_logged_in(service, "CurrentTime", {})
            except HoldfastError as error:
                log.info("keeping the login alive failed", extra={"error": str(error)})


def api_version(about: Foreign) -> str:
    """The newest version of the interface that server and library both know."""
    wanted = _numbers(str(about.apiVersion))
    known = [
        (_numbers(number), name)
        for name, number in VmomiSupport.versionIdMap.items()
        if name.startswith("vim.version.") and number[:1].isdigit()
    ]
    fitting = [each for each in known if each[0] <= wanted]
    return max(fitting)[1] if fitting else FIRST_VERSION


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())
