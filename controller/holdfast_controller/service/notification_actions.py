"""What operators can do about notifications: message in, message out."""

from __future__ import annotations

from holdfast_common.wire import operator_pb2
from holdfast_controller.runs.notifier import send_test
from holdfast_controller.runs.world import World


class NotificationActions:
    """Thread-safe."""

    def __init__(self, world: World) -> None:
        self._world = world

    def test(self, _: operator_pb2.Empty) -> operator_pb2.NotificationTest:
        """Send a message to everybody, as the controller would. Raises: ConfigurationError."""
        sent = send_test(self._world.configuration.notifications)
        return operator_pb2.NotificationTest(
            sent=[operator_pb2.NotificationSent(name=each.name, error=each.error) for each in sent]
        )
