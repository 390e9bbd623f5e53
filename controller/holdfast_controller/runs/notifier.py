"""Tells people what happened: a thread that looks once a minute, and sends. No job ever waits for it.

What is to be told is written down before it is sent, and what was sent before the next is: so a restart
tells nothing twice, but for a message that was on its way in that moment. See `decide.notices`.
"""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Final

from holdfast_common.errors import ConfigurationError, HoldfastError
from holdfast_common.logs import Secret
from holdfast_controller.configuration import NotificationSettings
from holdfast_controller.decide.notices import (
    PASSING_AGE_MAX,
    Message,
    Notice,
    NoticeKind,
    may_be_told,
    message_of,
    next_try,
    standing_changes,
)
from holdfast_controller.notification_urls import is_set, notification_urls
from holdfast_controller.runs.notice_sources import (
    not_begun_notices,
    passing_notices,
    standing_notices,
)
from holdfast_controller.runs.policy_runs import TRIES_SECONDS
from holdfast_controller.runs.promises import Promises
from holdfast_controller.runs.repository_space import SpaceWatch
from holdfast_controller.runs.sending import Sent, send
from holdfast_controller.runs.world import World
from holdfast_controller.store.notices import WaitingMessage

log = logging.getLogger(__name__)

LOOK_SECONDS: Final = 60.0
MESSAGES_AT_ONCE_MAX: Final = 20
Send = Callable[[Message, Sequence[Secret]], list[Sent]]


class Notifier:
    """One thread."""

    def __init__(self, world: World, space: SpaceWatch, *, sending: Send = send) -> None:
        self._world = world
        self._space = space
        self._promises = Promises(world)
        self._send = sending
        self._settings = world.configuration.notifications

    @property
    def is_wanted(self) -> bool:
        """Whether there is anybody to tell."""
        return is_set(self._settings)

    def start(self) -> None:
        """Begin. The thread ends with the controller, or with the program while it sends."""
        threading.Thread(target=self._run, name="notifier", daemon=True).start()

    def look(self) -> None:
        """Write down what is to be told. Raises: Locked, StoreFailed."""
        self._note_passing()
        self._note_not_begun()
        table, now = self._world.notices, self._world.clock.now()
        changes = standing_changes(
            standing_notices(self._world, self._space.space, self._promises.now()),
            table.standing_told(),
            now=now,
            repeat=timedelta(hours=self._settings.repeat_hours),
        )
        untold = table.untold()
        for kind in NoticeKind:
            due = [notice for notice in changes.due if notice.kind is kind]
            texts = [*untold.get(kind, []), *(notice.text for notice in due)]
            if texts and may_be_told(table.last_told(kind), now):
                self._tell(kind, texts, due)
        table.forget(changes.over, passing_before=now - PASSING_AGE_MAX)

    def deliver(self) -> None:
        """Send what waits, each message to whoever has not got it. Raises: Locked, StoreFailed."""
        waiting = self._world.notices.to_send(
            now=self._world.clock.now(), limit=MESSAGES_AT_ONCE_MAX
        )
        for message in waiting:
            if self._world.stopping.is_set():
                return
            self._deliver(message)

    def _note_passing(self) -> None:
        table, figures = self._world.notices, self._world.job_figures
        cursor = table.cursor()
        if cursor is None:
            table.add_passing([], cursor=figures.newest_event())
            return
        while ended := figures.ended_after(cursor):
            cursor = ended[-1].event_id
            table.add_passing(passing_notices(self._world, ended), cursor=cursor)

    def _note_not_begun(self) -> None:
        """Runs of policies that could not begin: no job ever ends that would tell of them."""
        slots, now = self._world.policy_slots, self._world.clock.now()
        tried_out = now - timedelta(seconds=TRIES_SECONDS)
        found = slots.not_begun(since_before=tried_out, news_since=tried_out - PASSING_AGE_MAX)
        if found:
            # in this order: a notice that is there already is added once, and one that is missed never comes
            self._world.notices.add(not_begun_notices(found))
            slots.note_told(each.moment for each in found)

    def _tell(self, kind: NoticeKind, texts: Sequence[str], due: Sequence[Notice]) -> None:
        message = message_of(kind, texts, sender=socket.gethostname())
        wanted = kind.value in self._settings.events
        self._world.notices.tell(message, due, now=self._world.clock.now(), send=wanted)

    def _deliver(self, waiting: WaitingMessage) -> None:
        table = self._world.notices
        sent_to, errors = set(waiting.sent_to), []
        try:
            urls = notification_urls(self._settings)
            left = [url for url in urls if _mark(self._world, url) not in sent_to]
            for url, sent in zip(
                left, self._send(waiting.message, left) if left else [], strict=True
            ):
                if sent.error:
                    errors.append(f"{sent.name}: {sent.error}")
                else:
                    sent_to.add(_mark(self._world, url))
        except HoldfastError as error:
            errors.append(error.line())
        now = self._world.clock.now()
        again = next_try(waiting.tries + 1, now)
        table.tried(
            waiting.message_id,
            sent_to=sent_to,
            error="; ".join(errors),
            now=now,
            next_try_at=again,
        )
        if errors:
            log.warning(
                "a notification was not sent",
                extra={
                    "notification": waiting.message.kind,
                    "error": "; ".join(errors),
                    "given_up": again is None,
                },
            )

    def _run(self) -> None:
        while True:
            try:
                self.look()
                self.deliver()
            except HoldfastError as error:
                log.warning("nobody could be notified", extra={"error": error.line()})
            except Exception:
                # a bug in a notice must not end all of them
                log.exception("nobody could be notified")
            if self._world.stopping.wait(LOOK_SECONDS):
                return


def send_test(settings: NotificationSettings, *, sending: Send = send) -> list[Sent]:
    """Send a message to everybody now; what became of it. Raises: ConfigurationError, HoldfastError."""
    if not is_set(settings):
        raise ConfigurationError(
            "no notification address is set",
            advice="set urls_file, urls_command or urls_credential below [notifications] in"
            " controller.toml, and start the controller anew",
        )
    message = Message(
        kind=NoticeKind.DIGEST,
        title=f"Holdfast on {socket.gethostname()}: a test",
        body="This is a test. Notifications of this controller arrive here.",
    )
    return sending(message, notification_urls(settings))


def sending_problem(world: World) -> str:
    """What `status` warns of: that the newest notification is not with everybody; empty: it is."""
    if not is_set(world.configuration.notifications):
        return ""
    counts, why = world.notices.counts(), world.notices.is_failing()
    if not why:
        return ""
    return (
        f"notifications cannot be sent ({counts.waiting} wait, {counts.given_up} were given up): {why};"
        " try `holdfast notify test`"
    )


def _mark(world: World, url: Secret) -> str:
    return world.notices.mark(url.reveal().decode())
