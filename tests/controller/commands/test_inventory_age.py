"""How old the list of VMs is stands where it is shown."""

from datetime import UTC, datetime

import pytest

from holdfast_common.wire import operator_pb2
from holdfast_controller.commands.status import inventory_age_text

NOW = datetime(2026, 1, 1, 12, 0, tzinfo=UTC)


def test_what_is_wrong_with_tags_stands_beside_it() -> None:
    vcenter = operator_pb2.Vcenter(
        refreshed_at="2026-01-01T11:55:00.000000Z", tags_problem="vSphere does not answer"
    )
    text = inventory_age_text(vcenter, NOW)
    assert text == "read 5 minutes ago; its tags are not known: vSphere does not answer"
    vcenter.tags_read_at = "2025-12-30T11:55:00.000000Z"
    assert "; its tags are 2 days old, they could not be" in inventory_age_text(vcenter, NOW)


@pytest.mark.parametrize(
    ("refreshed_at", "text"),
    [
        ("", "never read"),
        ("2026-01-01T11:55:00.000000Z", "read 5 minutes ago"),
        ("2026-01-01T12:00:20.000000Z", "read 0 minutes ago"),
    ],
)
def test_the_age_of_an_inventory_is_told_in_minutes(refreshed_at: str, text: str) -> None:
    assert inventory_age_text(operator_pb2.Vcenter(refreshed_at=refreshed_at), NOW) == text
