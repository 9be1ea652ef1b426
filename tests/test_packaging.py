"""The wheel: one top-level name, every room inside, nothing left over from an earlier build."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    clean = tmp_path_factory.mktemp("clean") / "latentsb"
    tracked = ("latentsb", "autoencoders", "bridges", "recipes", "pyproject.toml", "README.md", "LICENSE")
    clean.mkdir()
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in tracked:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, clean / name, symlinks=True, ignore=ignore)
        else:
            shutil.copy(source, clean / name)
    # setuptools writes next to its input, and a stale build/ resurrects deleted files: hence the clean copy.
    build = "from setuptools import build_meta; build_meta.build_wheel('dist')"
    subprocess.run([sys.executable, "-c", build], cwd=clean, check=True, capture_output=True)
    (path,) = (clean / "dist").glob("*.whl")
    return zipfile.ZipFile(path)


def test_wheel_has_one_top_level_name(wheel: zipfile.ZipFile) -> None:
    tops = {name.split("/")[0] for name in wheel.namelist() if ".dist-info/" not in name}
    assert tops == {"latentsb"}


@pytest.mark.parametrize("room", ["autoencoders", "bridges", "recipes"])
def test_wheel_holds_every_file_of_a_room(wheel: zipfile.ZipFile, room: str) -> None:
    suffixes = {".py", ".yaml"}
    ours = {f"latentsb/{room}/{p.name}" for p in (ROOT / room).iterdir() if p.suffix in suffixes}
    packed = {n for n in wheel.namelist() if n.startswith(f"latentsb/{room}/")}
    assert packed == ours


def test_wheel_holds_every_module_of_the_core(wheel: zipfile.ZipFile) -> None:
    core = ROOT / "latentsb"
    linked = {p.name for p in core.iterdir() if p.is_symlink()}
    ours = {p.relative_to(ROOT).as_posix() for p in core.rglob("*.py") if p.relative_to(core).parts[0] not in linked}
    assert ours <= set(wheel.namelist())


def test_rooms_are_relative_links() -> None:
    for room in ("autoencoders", "bridges", "recipes"):
        link = ROOT / "latentsb" / room
        assert link.is_symlink()
        assert link.readlink() == Path("..") / room


def test_entry_points_announce_the_rooms(wheel: zipfile.ZipFile) -> None:
    (entry,) = [n for n in wheel.namelist() if n.endswith("entry_points.txt")]
    text = wheel.read(entry).decode()
    assert "bridge = latentsb.bridges" in text
    assert "autoencoder = latentsb.autoencoders" in text
