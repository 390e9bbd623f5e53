"""What this host can tell of itself, so that its own VM is recognised in vSphere. Only looked at, never asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Final

NETWORK_CARDS: Final = Path("/sys/class/net")
BIOS_UUID: Final = Path("/sys/class/dmi/id/product_uuid")  # for root alone, on most systems


def mac_addresses(folder: Path = NETWORK_CARDS) -> tuple[str, ...]:
    """Of its network cards; of bridges, tunnels and containers' ends it tells nothing: others have the same."""
    found = set()
    for card in _cards(folder):
        if (card / "device").exists():
            found.add(_text(card / "address").lower())
    return tuple(sorted(each for each in found if each.strip("0:")))


def bios_uuid(path: Path = BIOS_UUID) -> str:
    """Empty when this program may not read it."""
    return _text(path).lower()


def _cards(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""
