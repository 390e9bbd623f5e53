"""`rescue.py` alone, with cryptography and nothing else, restores every repository that lies here for ever."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support import golden_repacked
from support.golden_machines import LINEAGES, NAME, built, steps
from support.golden_repository import (
    GOLDEN,
    KEY_FILE,
    KINDS,
    PASSPHRASE,
    ROTATED,
    VAULT_PRIVATE,
    images,
    noise,
    text,
)
from support.rescue_runs import RESCUE, Ran, run_rescue

ALLOWED = {"cryptography", "zstandard", "blake3"}
MACHINES = GOLDEN / NAME


def sheet_of(name: str) -> list[str]:
    return ["--recovery-sheet-file", str(GOLDEN / f"{name}.recovery")]


def own_copy(repository: Path) -> Path:
    """The program that lies in the repository; repositories older than it are read with this release's."""
    copy = repository / "about" / "rescue.py"
    return copy if copy.exists() else RESCUE


def qemu_img(*arguments: object) -> str:
    done = subprocess.run(
        ["qemu-img", *map(str, arguments)], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def restored(repository: Path, job_id: str, to: Path, *more: str) -> Ran:
    ran = run_rescue(
        repository, "restore", job_id, "--to", str(to), *sheet_of(repository.name), *more,
        program=own_copy(repository),
    )  # fmt: skip
    assert ran.status == 0, ran.err
    return ran


def test_it_imports_the_standard_library_and_three_packages_and_nothing_of_the_engine() -> None:
    names = set()
    for node in ast.walk(ast.parse(RESCUE.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            names.add(str(node.module).split(".")[0])
    assert names <= set(sys.stdlib_module_names) | ALLOWED
    assert "cryptography" in names
    assert "holdfast" not in " ".join(names)


def test_with_cryptography_alone_it_has_neither_of_the_fast_packages(tmp_path: Path) -> None:
    probe = tmp_path / "probe.py"
    probe.write_text(
        "import importlib.util as u\nprint([bool(u.find_spec(n)) for n in "
        "('cryptography', 'zstandard', 'blake3', 'holdfast_common')])\n"
    )
    assert run_rescue(tmp_path, program=probe).out.strip() == "[True, False, False, False]"


@pytest.mark.parametrize("name", KINDS)
def test_every_point_of_a_golden_repository_is_restored_from_its_sheet(
    name: str, tmp_path: Path
) -> None:
    """One run a point is a person's way; to spare time all but one are done in one process."""
    content = images(compressible=KINDS[name])
    one = tmp_path / "one.raw"
    restored(GOLDEN / name, "JOB00003", one)
    assert one.read_bytes() == content["JOB00003"]
    driver = tmp_path / "driver.py"
    driver.write_text(
        "import runpy, sys\n"
        "program, folder, sheet, to, *jobs = sys.argv[1:]\n"
        "module = runpy.run_path(program)\n"
        "for job in jobs:\n"
        "    arguments = [folder, 'restore', job, '--to', to + job, '--recovery-sheet-file', sheet]\n"
        "    assert module['main'](arguments) == 0\n"
    )
    jobs = [job for job in content if job != "JOB00003"]
    more = [str(GOLDEN / name), sheet_of(name)[1], f"{tmp_path}/", *jobs]
    ran = run_rescue(own_copy(GOLDEN / name), *more, program=driver)
    assert ran.status == 0, ran.err
    for job in jobs:
        assert (tmp_path / job).read_bytes() == content[job]


def test_two_machines_with_incrementals_are_restored_by_the_repositorys_own_copy(
    tmp_path: Path,
) -> None:
    assert own_copy(MACHINES) == MACHINES / "about" / "rescue.py"
    for step in steps():
        for device_key, disk in step.disks.items():
            formats = ("raw", "vmdk", "vmdk-flat") if disk.capacity_bytes < 10**9 else ("vmdk",)
            kind = formats[int(step.job_id[-1]) % len(formats)]
            to = tmp_path / f"{step.job_id}-{device_key}.image"
            restored(MACHINES, step.job_id, to, "--disk", str(device_key), "--format", kind)
            expected = tmp_path / "expected.raw"
            disk.write_sparse(expected)
            if kind == "raw":
                assert to.stat().st_size == disk.capacity_bytes
            else:
                qemu_img("check", "-f", "vmdk", to)
            form = "raw" if kind == "raw" else "vmdk"
            assert "identical" in qemu_img("compare", "-f", form, "-F", "raw", to, expected)


def test_what_a_prune_repacked_and_a_change_of_keys_left_is_restored(tmp_path: Path) -> None:
    repository = GOLDEN / golden_repacked.NAME
    assert own_copy(repository) == repository / "about" / "rescue.py"
    for job_id, image in golden_repacked.images().items():
        restored(repository, job_id, tmp_path / job_id, "--format", "raw")
        assert (tmp_path / job_id).read_bytes() == image
    ran = run_rescue(repository, "restore", "JOB00001", "--to", "x", *sheet_of(repository.name))
    assert ran.status == 2, "it was forgotten"


def test_two_machines_are_still_written_with_the_same_bytes() -> None:
    made = {n: data for n, data in built()[0].objects.items() if not n.startswith("about/")}
    files = [path for path in MACHINES.rglob("*") if path.is_file() and path.parent.name != "about"]
    assert {str(path.relative_to(MACHINES)): path.read_bytes() for path in files} == made


def test_all_formats_of_a_disk_hold_the_same_bytes_for_qemu(tmp_path: Path) -> None:
    for kind in ("raw", "vmdk", "vmdk-flat"):
        to = tmp_path / f"web-{kind}.{kind[:4]}"
        restored(MACHINES, "JOB00003", to, "--disk", "2000", "--format", kind)
    raw = tmp_path / "web-raw.raw"
    for kind in ("vmdk", "vmdk-flat"):
        said = qemu_img("compare", "-f", "vmdk", "-F", "raw", tmp_path / f"web-{kind}.vmdk", raw)
        assert "identical" in said
    assert raw.stat().st_blocks * 512 < 4 << 20  # with holes where the disk is zero


def test_the_list_names_machines_points_and_disks() -> None:
    ran = run_rescue(MACHINES, "list", "--json", *sheet_of(NAME), program=own_copy(MACHINES))
    assert ran.status == 0
    points = ran.document["points"]
    assert [(row["job_id"], row["vm"], row["level"]) for row in points] == [
        (step.job_id, LINEAGES[step.lineage], step.level) for step in steps()
    ]
    assert [disk["capacity_bytes"] for disk in points[0]["disks"]] == [40 << 20, 5 << 30]


def test_the_list_of_points_is_rebuilt_with_all_that_manifests_say() -> None:
    ran = run_rescue(MACHINES, "points", *sheet_of(NAME))
    bodies = [row["manifest"] for row in ran.document["points"]]
    assert [body["facts"]["vm"]["name"] for body in bodies] == ["web", "mail", "web", "web", "mail"]
    assert all(row["counts"] for row in ran.document["points"])


@pytest.mark.parametrize("name", [NAME, golden_repacked.NAME, ROTATED])
def test_a_check_of_every_byte_finds_golden_repositories_clean(name: str) -> None:
    ran = run_rescue(GOLDEN / name, "check", "--read-data", "--json", *sheet_of(name))
    assert ran.status == 0, ran.out
    assert ran.document["clean"] is True


def test_the_files_of_a_machine_are_extracted(tmp_path: Path) -> None:
    ran = run_rescue(
        MACHINES, "extract", "JOB00001", "--to", str(tmp_path / "web"), *sheet_of(NAME)
    )
    assert ran.status == 0, ran.err
    assert (tmp_path / "web" / "web.vmx").read_bytes() == text(700, "vmx")
    assert (tmp_path / "web" / "web.nvram").read_bytes() == noise(8684, "nvram")
    assert (tmp_path / "web" / "web.ovf").read_bytes() == text(3000, "ovf")


def test_a_passphrase_a_key_file_and_a_typed_sheet_open_it_as_well(tmp_path: Path) -> None:
    (tmp_path / "passphrase").write_text(PASSPHRASE + "\n")
    (tmp_path / "key").write_bytes(KEY_FILE)
    (tmp_path / "private").write_text(f"holdfast-private-1:{VAULT_PRIVATE.hex()}\n")
    golden = GOLDEN / ROTATED
    for option, file in (("--passphrase-file", "passphrase"), ("--key-file", "key")):
        ran = run_rescue(golden, "list", option, str(tmp_path / file))
        assert (ran.status, "4 points" in ran.out) == (0, True), ran.err
    typed = (GOLDEN / f"{ROTATED}.recovery").read_text().lower().split()
    wrong = typed[2][:-1] + ("0" if typed[2][-1] != "0" else "1")
    lines = [*typed[:2], wrong, " ".join(typed[2:5]), *typed[5:]]
    ran = run_rescue(golden, "list", typed="\n".join(lines) + "\n")
    assert ran.status == 0, ran.err
    assert f"group 3: {wrong.upper()} is mistyped" in ran.err
    shut_out = run_rescue(golden, "list", "--private-key-file", str(tmp_path / "private"))
    assert "opens only the older generation 2" in shut_out.err


def test_what_does_not_open_it_is_told_with_what_does(tmp_path: Path) -> None:
    (tmp_path / "passphrase").write_text("another one\n")
    ran = run_rescue(GOLDEN / ROTATED, "list", "--passphrase-file", str(tmp_path / "passphrase"))
    assert ran.status == 3
    assert "recovery-sheet" in ran.err
    assert "controller" in ran.err
    (tmp_path / "sheet").write_text("A20T6HXG J2YSHVHZ NBE04JJU S1GSX5F")
    ran = run_rescue(GOLDEN / ROTATED, "list", "--recovery-sheet-file", str(tmp_path / "sheet"))
    assert ran.status == 3
    assert "a sheet has 9 groups of 8, this has 4" in ran.err
    assert "group 3: the sheet never has the character 'U'" in ran.err
    assert "group 4: it has 7 characters, not 8" in ran.err


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    there = tmp_path / "web.raw"
    there.write_text("precious")
    arguments = ["restore", "JOB00003", "--disk", "2000", *sheet_of(NAME), "--to"]
    ran = run_rescue(MACHINES, *arguments, str(there))
    assert (ran.status, there.read_text()) == (2, "precious")
    assert "nothing is overwritten" in ran.err
    (tmp_path / "other.raw.partial").write_text("precious too")
    ran = run_rescue(MACHINES, *arguments, str(tmp_path / "other.raw"))
    assert (ran.status, (tmp_path / "other.raw.partial").read_text()) == (2, "precious too")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other.raw.partial", "web.raw"]


def test_help_says_the_first_steps() -> None:
    ran = run_rescue(MACHINES, "--help")
    assert ran.status == 0
    assert "first steps" in ran.out


def test_a_repository_without_keys_is_told_as_what_it_is(tmp_path: Path) -> None:
    shutil.copytree(MACHINES, tmp_path / "r")
    shutil.rmtree(tmp_path / "r" / "keys")
    ran = run_rescue(tmp_path / "r", "list", *sheet_of(NAME))
    assert ran.status == 3
    assert "no key generation" in ran.err
