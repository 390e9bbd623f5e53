"""Makes the home and the repository of an earlier release, with that release's own programs.

    git worktree add TREE COMMIT
    python tests/support/earlier_release.py TREE FOLDER

Afterwards ``FOLDER/home`` and ``FOLDER/repository`` (without locks and the agent's state) are packed into
``tests/support/releases``; with the lab, also ``FOLDER/lab/lab.json`` and the VM's folder on the datastore, as
``earlier-lab``. `main-job` was made of the commit that ended the main job ("One fixture for all tests of
runs").
"""

from __future__ import annotations

import os
import sys
from pathlib import Path


def _programs(tree: Path, folder: Path, paths: list[str]) -> Path:
    """The installed programs, with the release's packages before today's."""
    folder.mkdir(parents=True)
    for name in ("holdfast", "holdfast-agent", "holdfast-lab"):
        installed = (Path(sys.executable).parent / name).read_text().split("\n", 1)[1]
        program = folder / name
        program.write_text(f"#!{sys.executable}\nimport sys\nsys.path[:0] = {paths!r}\n{installed}")
        program.chmod(0o755)
    assert tree.is_dir()
    return folder


def main() -> None:
    tree, folder = Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve()
    paths = [str(tree / name) for name in ("common", "agent", "controller", "lab", "tests")]
    sys.path[:0] = paths
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)
    from support import installation

    assert str(tree) in str(installation.__file__), "today's support was imported"
    installation.BIN = _programs(tree, folder / "bin", paths)
    made = installation.Installation(folder, lab_arguments=("--inventory", "empty"))
    disk = {"size_bytes": 4 << 20, "content": "random", "seed": 5}
    try:
        made.start_lab()
        made.control("vm-add", machine={"name": "small", "datastore": "nfs1", "disks": [disk]})
        made.init()
        made.start_controller()
        made.add_vcenter()
        made.enrol_agent(hot_add=False)
        made.start_agent()
        made.holdfast("backup", "small")
    finally:
        made.stop()


if __name__ == "__main__":
    main()
