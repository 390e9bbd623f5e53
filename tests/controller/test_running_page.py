"""The page about runs: what it shows of the configuration can be read."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from holdfast_controller.configuration import ControllerConfiguration, StreamLimits

PAGE = Path(__file__).parents[2] / "docs" / "running.md"


def test_the_limits_on_the_page_are_a_configuration_and_none_is_missing() -> None:
    (text,) = re.findall(r"```toml\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    found = msgspec.toml.decode(text.encode(), type=ControllerConfiguration)
    assert found.jobs_at_once_max == 16
    assert found.limits == StreamLimits(datastores={"slow nfs": 1}, hosts={"esx7.example": 2})
    plain = msgspec.to_builtins(StreamLimits())
    assert [name for name in plain if name not in text and not isinstance(plain[name], dict)] == []
