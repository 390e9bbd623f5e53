"""`holdfast-lab` as the vCenter that an earlier release's home knows: it has that one's identity and datastores.

A lab cannot be started from another one's folder. ``EARLIER_LAB`` names the ``lab.json`` of the earlier one.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from holdfast_lab import datastores, inventory_build
from holdfast_lab.lab import Lab
from holdfast_lab.main import main as lab_main


def main() -> None:
    """Run it."""
    earlier = json.loads(Path(os.environ["EARLIER_LAB"]).read_text())
    uuids = {
        name: store["url"].rstrip("/").rpartition("/")[2]
        for name, store in earlier["datastores"].items()
    }
    made = datastores.Datastore.__init__

    def with_its_uuid(self: datastores.Datastore, *arguments: Any, **named: Any) -> None:
        made(self, *arguments, **named)
        self.uuid = uuids.get(self.name, self.uuid)

    def with_its_identity(state: Path, **named: Any) -> Lab:
        return Lab(state, **{**named, "instance_uuid": earlier["instance_uuid"]})

    datastores.Datastore.__init__ = with_its_uuid  # type: ignore[method-assign]  # in this process only
    vars(inventory_build)["Lab"] = with_its_identity
    lab_main()


if __name__ == "__main__":
    main()
