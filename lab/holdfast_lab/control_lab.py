"""Commands about the lab as a whole: misbehaviour, log, counters, sessions, datastores."""

from __future__ import annotations

from holdfast_lab.certificate import DAYS_VALID, make_certificate
from holdfast_lab.control import Control, control_command
from holdfast_lab.datastores import Datastore
from holdfast_lab.faults import LabError
from holdfast_lab.hosts import Host
from holdfast_lab.inventory import Datacenter
from holdfast_lab.inventory_build import add_datastore
from holdfast_lab.inventory_plan import parse_size
from holdfast_lab.misbehaviour import KINDS
from holdfast_lab.sessions import LabUser


@control_command("describe")
def describe(control: Control) -> object:
    """What ``lab.json`` says."""
    return dict(control.lab.describe())


# misbehaviour -----------------------------------------------------------------------------


@control_command("misbehave")
def arm(control: Control) -> object:
    """Arm a rule: ``kind``, ``match``, ``nth``, ``times`` (0: for ever), ``parameters``."""
    arguments = control.arguments
    times = arguments.number("times", 1)
    rule = control.lab.misbehaviour.arm(
        arguments.text("kind"),
        match=_texts(arguments.optional("match", dict)),
        nth=arguments.number("nth", 1),
        times=None if times == 0 else times,
        parameters=_texts(arguments.optional("parameters", dict)),
    )
    return rule.describe()


def _texts(given: dict[object, object] | None) -> dict[str, str]:
    return {str(name): str(value) for name, value in (given or {}).items()}


@control_command("misbehaviour-kinds")
def kinds(control: Control) -> object:
    """What can be armed."""
    del control
    return dict(KINDS)


@control_command("misbehaviour-list")
def rules(control: Control) -> object:
    """The armed rules, with how often each was met and how often it bit."""
    return [each.describe() for each in control.lab.misbehaviour.rules]


@control_command("misbehaviour-release")
def release(control: Control) -> object:
    """Let go on what a rule (or all) holds."""
    return control.lab.misbehaviour.release(control.arguments.optional("rule", str))


@control_command("misbehaviour-disarm")
def disarm(control: Control) -> object:
    """Take a rule (or all) off."""
    return control.lab.misbehaviour.disarm(control.arguments.optional("rule", str))


# what happened ----------------------------------------------------------------------------


@control_command("calls")
def calls(control: Control) -> object:
    """Lines of the log after number ``after``, of one ``event`` kind, of one ``method``."""
    arguments = control.arguments
    method = arguments.optional("method", str)
    found = control.lab.calls.events(
        after=arguments.number("after", 0), event=arguments.optional("event", str)
    )
    return [each for each in found if method is None or each.get("method") == method]


@control_command("counters")
def counters(control: Control) -> object:
    """Streams by host and by datastore: open now, at most, in all, bytes."""
    return control.lab.calls.counted()


@control_command("tasks")
def tasks(control: Control) -> object:
    """Tasks, the newest last; only those under way with ``running``."""
    with control.lab.lock:
        known = control.lab.tasks.known
        chosen = control.lab.tasks.running() if control.arguments.flag("running") else known[-200:]
        return [
            {
                "task": each.moid,
                "description": each.description_id,
                "vm": each.subject,
                "state": each.state,
                "progress": each.progress,
                "fault": each.fault.name if each.fault else None,
            }
            for each in chosen
        ]


# sessions and users -----------------------------------------------------------------------


@control_command("session-list")
def list_sessions(control: Control) -> object:
    """Who is logged in."""
    with control.lab.lock:
        return [
            {
                "key": each.key,
                "user": each.user.name if each.user else "",
                "interface": each.interface,
                "calls": each.call_count,
                "running": each.calls_running,
                "agent": each.user_agent,
            }
            for each in control.lab.sessions.logged_in()
        ]


@control_command("session-expire")
def expire_sessions(control: Control) -> object:
    """End all sessions, or those of one ``user``; how many there were."""
    with control.lab.lock:
        return control.lab.sessions.end_all(control.arguments.optional("user", str))


@control_command("user-add")
def add_user(control: Control) -> object:
    """An account with all rights, or only those in ``privileges``; one that is there already gets them at once."""
    arguments = control.arguments
    privileges = arguments.optional("privileges", list)
    user = LabUser(
        name=arguments.text("name"),
        password=arguments.text("password"),
        privileges=None if privileges is None else frozenset(map(str, privileges)),
    )
    with control.lab.lock:
        control.lab.users[user.name] = user
        for session in control.lab.sessions.logged_in():
            if session.user is not None and session.user.name == user.name:
                session.user = user
    return None


@control_command("settings")
def settings(control: Control) -> object:
    """Change ``session_idle_seconds``, ``lease_timeout_seconds``, ``clock_ahead_seconds``; gives what holds now."""
    lab = control.lab
    with lab.lock:
        lab.sessions.idle_seconds = float(
            control.arguments.number("session_idle_seconds", int(lab.sessions.idle_seconds))
        )
        lab.lease_timeout_seconds = float(
            control.arguments.number("lease_timeout_seconds", int(lab.lease_timeout_seconds))
        )
        lab.clock_ahead_seconds = control.arguments.number(
            "clock_ahead_seconds", lab.clock_ahead_seconds
        )
        return {
            "clock_ahead_seconds": lab.clock_ahead_seconds,
            "session_idle_seconds": lab.sessions.idle_seconds,
            "lease_timeout_seconds": lab.lease_timeout_seconds,
        }


@control_command("certificate-change")
def change_certificate(control: Control) -> object:
    """Serve another certificate from the next connection on, valid for ``days``; its SHA-256."""
    days = control.arguments.number("days", DAYS_VALID)
    control.server.use_certificate(make_certificate(control.lab.state, days=days))
    if control.arguments.flag("cut", default=True):
        control.server.close_connections()
    return control.lab.certificate_sha256


@control_command("connections-cut")
def cut_connections(control: Control) -> object:
    """Cut every open connection of clients."""
    control.server.close_connections()
    return None


# hosts and datastores ---------------------------------------------------------------------


@control_command("host-build")
def set_host_build(control: Control) -> object:
    """Let a host be of another ``build``, and of another ``version``."""
    with control.lab.lock:
        host = control.lab.by_name(Host, control.arguments.text("host"))
        host.build = control.arguments.text("build")
        host.product_version = control.arguments.optional("version", str) or host.product_version
        control.lab.touch(host)
    return None


@control_command("host-connected")
def set_host_connected(control: Control) -> object:
    """Let a ``host`` be ``connected`` to its vCenter or not."""
    with control.lab.lock:
        host = control.lab.by_name(Host, control.arguments.text("host"))
        host.connected = control.arguments.flag("connected", default=True)
        control.lab.touch(host)
    return None


@control_command("datastore-mount")
def mount_datastore(control: Control) -> object:
    """Let only these ``hosts`` see a datastore; none named: all of them."""
    lab = control.lab
    wanted = control.arguments.optional("hosts", list)
    with lab.lock:
        datastore = lab.datastore(control.arguments.text("name"))
        chosen = [lab.by_name(Host, str(each)) for each in wanted or ()]
        datastore.mounts = chosen or list(lab.hosts())
        lab.touch(datastore)
        for host in lab.hosts():
            lab.touch(host)
    return None


@control_command("datastore-list")
def list_datastores(control: Control) -> object:
    """Every datastore."""
    with control.lab.lock:
        return [_datastore(each) for each in control.lab.datastores()]


@control_command("datastore-add")
def add(control: Control) -> object:
    """Make a datastore: ``name``, ``kind`` NFS or VMFS, ``capacity`` such as 10G."""
    arguments = control.arguments
    kind = arguments.optional("kind", str) or "VMFS"
    if kind not in ("NFS", "VMFS"):
        raise LabError(f"unknown kind of datastore {kind}")
    with control.lab.lock:
        made = add_datastore(
            control.lab,
            control.lab.every(Datacenter)[0],
            name=arguments.text("name"),
            kind=kind,
            capacity_bytes=parse_size(arguments.optional("capacity", str) or "64G"),
        )
        return _datastore(made)


@control_command("datastore-set")
def set_datastore(control: Control) -> object:
    """Change a datastore's ``capacity``, its latencies in milliseconds, or whether it is ``accessible``."""
    arguments = control.arguments
    with control.lab.lock:
        datastore = control.lab.datastore(arguments.text("name"))
        capacity = arguments.optional("capacity", str)
        if capacity is not None:
            datastore.capacity_bytes = parse_size(capacity)
        datastore.accessible = arguments.flag("accessible", default=datastore.accessible)
        datastore.read_latency_milliseconds = arguments.number(
            "read_latency", datastore.read_latency_milliseconds
        )
        datastore.read_latency_each_stream_milliseconds = arguments.number(
            "read_latency_each_stream", datastore.read_latency_each_stream_milliseconds
        )
        control.lab.touch(datastore)
        return _datastore(datastore)


def _datastore(datastore: Datastore) -> dict[str, object]:
    return {
        "name": datastore.name,
        "id": datastore.moid,
        "kind": datastore.kind_name,
        "path": str(datastore.root),
        "url": datastore.url,
        "capacity_bytes": datastore.capacity_bytes,
        "free_bytes": datastore.free_bytes(),
        "accessible": datastore.accessible,
        "read_latency": datastore.read_latency_now(),
        "files": sorted(
            path.relative_to(datastore.root).as_posix()
            for path in datastore.root.rglob("*")
            if path.is_file()
        ),
    }
