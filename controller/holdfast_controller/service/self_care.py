"""What the controller does about itself: figures for Prometheus, and notices for people. Made before it listens, begun when it does."""

from __future__ import annotations

from holdfast_controller.runs.figures import FigureBook
from holdfast_controller.runs.notifier import Notifier
from holdfast_controller.runs.repository_space import SpaceWatch
from holdfast_controller.runs.world import World
from holdfast_controller.service.metrics_listener import MetricsListener, SharedText


class SelfCare:
    """Begun once, closed once. What is not asked for in ``controller.toml`` costs nothing."""

    def __init__(self, world: World) -> None:
        """Raises: ConfigurationError when an address cannot be used."""
        self._space = SpaceWatch(world)
        self._listener = _listener(world, self._space)
        self._notifier = Notifier(world, self._space)

    @property
    def metrics_port(self) -> int:
        """Where it listens; 0: it does not."""
        return 0 if self._listener is None else self._listener.port

    def start(self) -> None:
        """Begin."""
        if self._listener is not None or self._notifier.is_wanted:
            self._space.start()
        if self._listener is not None:
            self._listener.start()
        if self._notifier.is_wanted:
            self._notifier.start()

    def close(self) -> None:
        """End; the database is still there."""
        if self._listener is not None:
            self._listener.close()


def _listener(world: World, space: SpaceWatch) -> MetricsListener | None:
    address = world.configuration.metrics_address
    if not address:
        return None
    # imported here: prometheus_client takes a tenth of a second, and most of it nobody else needs
    from holdfast_controller.service.metrics import MetricsText

    book, text = FigureBook(world, space), MetricsText()
    return MetricsListener(address, SharedText(lambda: text.of(book.gather()), world.clock))
