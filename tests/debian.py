"""Programs that only tests need. They are taken from the path, or installed from Debian if this process may install packages."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

_INSTALL_SECONDS = 300
_LOCK = Path(tempfile.gettempdir()) / "ionos-poller-tests-apt.lock"


def program(name: str, package: str, unchecked: str) -> str:
    """The program's path. If it is not available, the test is skipped. The reason says what remains `unchecked`."""
    if shutil.which(name) is None and os.geteuid() == 0 and shutil.which("apt-get"):
        with _LOCK.open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # tests run in parallel, but apt-get cannot
            if shutil.which(name) is None:
                _install(package)
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"NOT CHECKED: {unchecked}; there is no {name} (Debian: {package})")
    return found


def _install(package: str) -> None:
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", package]):
        subprocess.run(
            ["apt-get", *command], env=environment, capture_output=True, check=False, timeout=_INSTALL_SECONDS
        )
