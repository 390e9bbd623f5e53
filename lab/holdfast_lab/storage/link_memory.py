"""What a disk's files cannot say, kept beside its guest log: each frozen link's moment."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path

from holdfast_lab.storage.links import LinkTree

FILE_NAME = "links.json"


def save_links(directory: Path, tree: LinkTree) -> None:
    """Note the sequence and the pin of every frozen link, by file name."""
    content = {
        link.path.name: {"sequence": link.sequence, "pinned": link.pinned}
        for link in tree.links.values()
        if link is not tree.tip
    }
    fresh = directory / f"{FILE_NAME}.new"
    fresh.write_text(json.dumps(content, indent=1), encoding="utf-8")
    fresh.replace(directory / FILE_NAME)


def restore_links(directory: Path, tree: LinkTree, pinned: Collection[Path] | None) -> None:
    """Set sequences and pins after the files were opened; ``pinned`` None: as noted, or all."""
    path = directory / FILE_NAME
    content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for link in tree.links.values():
        if link is tree.tip:
            continue
        noted = content.get(link.path.name, {})
        link.sequence = noted.get("sequence")
        link.pinned = noted.get("pinned", True) if pinned is None else link.path in pinned
