"""The page about keeping the repository: what it shows of the configuration can be read, and is what is not said."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from holdfast_controller.configuration import ControllerConfiguration, KeepingSettings

PAGE = Path(__file__).parents[2] / "docs" / "keeping.md"


def test_the_settings_on_the_page_are_the_defaults_and_none_is_missing() -> None:
    (text,) = re.findall(r"```toml\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    found = msgspec.toml.decode(text.encode(), type=ControllerConfiguration)
    assert found.keeping == KeepingSettings()
    shown = msgspec.toml.decode(text.encode())["keeping"]
    assert shown == msgspec.to_builtins(KeepingSettings())
