"""Two builds of the same files are equal, byte for byte, in any place and at any time."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.support import TOP


def test_two_builds_of_the_same_files_are_equal(tmp_path: Path) -> None:
    names = ["pyproject.toml", "README.md", "LICENSE", "poller", "man", "systemd"]
    built = []
    for number, umask in enumerate((0o022, 0o077), 1):
        place = tmp_path / ("a" * number)
        place.mkdir()
        for name in names:
            source = TOP / name
            if source.is_dir():
                shutil.copytree(source, place / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, place)
        for path in place.rglob("*"):
            os.utime(path, (number * 10**9, number * 10**9))
            path.chmod((0o777 if path.is_dir() else 0o666) & ~umask)
        command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", "dist"]
        subprocess.run(
            command, cwd=place, check=True, capture_output=True, timeout=120, env={**os.environ, "TZ": f"UTC-{number}"}
        )
        built.append({path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (place / "dist").iterdir()})
    assert len(built[0]) == 2, "a wheel and an sdist"
    assert built[0] == built[1]
