"""How much room the repository's file system has, looked at in a thread of its own: a mount may hang for ever.

For figures and notices, which never ask the mount themselves.
"""

from __future__ import annotations

import logging
import shutil
import threading
from dataclasses import dataclass
from typing import Final

from holdfast_common.clock import utc_text
from holdfast_common.errors import HoldfastError
from holdfast_controller.runs.world import World

log = logging.getLogger(__name__)

LOOK_SECONDS: Final = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """What the file system said at ``measured_at``, UTC ISO text."""

    free_bytes: int
    capacity_bytes: int
    measured_at: str


class SpaceWatch:
    """Looks once a minute until the controller stops. Thread-safe."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._space: Space | None = None
        self._looked = threading.Event()

    @property
    def space(self) -> Space | None:
        """What was found last, however long ago; None: nothing so far, or there is no repository."""
        return self._space

    def start(self) -> None:
        """Begin to look. The thread may hang in a mount that does not answer, and ends with the program."""
        threading.Thread(target=self._run, name="repository space", daemon=True).start()

    def wait_looked(self, seconds: float) -> bool:
        """Until it has looked once."""
        return self._looked.wait(seconds)

    def look(self) -> None:
        """Look once."""
        world = self._world
        try:
            if world.keeper.has_repository:
                found = shutil.disk_usage(world.keeper.folder)
                self._space = Space(
                    free_bytes=found.free,
                    capacity_bytes=found.total,
                    measured_at=utc_text(world.clock.now()),
                )
        except (OSError, HoldfastError) as error:
            log.info("the repository's room is not known", extra={"error": str(error)})
        self._looked.set()

    def _run(self) -> None:
        while True:
            self.look()
            if self._world.stopping.wait(LOOK_SECONDS):
                return
