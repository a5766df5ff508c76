"""The disk of a state: full, read-only, or with damaged files.

As root it is a small file system of its own, which can be full or read-only. Without root it is a directory: to make it read-only
its permissions are removed, and it cannot be filled. `has_limits` says which.
"""

from __future__ import annotations

import os
import subprocess
from contextlib import suppress
from pathlib import Path

from tests.faults.plan import Damage

_SIZE = "160m"  # damaged states stay there


class Disk:
    """A directory for a state and the files of a sink; a context manager, which unmounts it at its end."""

    def __init__(self, place: Path) -> None:
        self.place = place
        place.mkdir()
        self.has_limits = os.geteuid() == 0 and _mount("-t", "tmpfs", "-o", f"size={_SIZE}", "tmpfs", str(place))
        self._ballast = place / "ballast"

    def __enter__(self) -> Disk:
        return self

    def __exit__(self, *_: object) -> None:
        self.set_read_only(False)
        if self.has_limits:
            subprocess.run(["umount", "--lazy", str(self.place)], check=True)

    def fill(self, leave_bytes: int = 0) -> None:
        """Fill the disk, but for `leave_bytes`. Does nothing without `has_limits`."""
        if not self.has_limits:
            return
        with self._ballast.open("ab", buffering=0) as file:
            for size in (1 << 20, 1 << 12):
                with suppress(OSError):
                    while True:
                        file.write(bytes(size))
            file.truncate(max(0, file.tell() - leave_bytes))

    def empty(self) -> None:
        """Free the filled room."""
        self._ballast.unlink(missing_ok=True)

    def set_read_only(self, is_read_only: bool) -> None:
        """Works only while no process has a file open for writing."""
        if self.has_limits:
            _mount("-o", f"remount,{'ro' if is_read_only else 'rw'},size={_SIZE}", str(self.place))
            return
        for path in [self.place, *(path for path in self.place.rglob("*") if path.is_dir())]:
            path.chmod(0o500 if is_read_only else 0o700)


def _mount(*args: str) -> bool:
    return subprocess.run(["mount", *args], capture_output=True, check=False).returncode == 0


def apply(damage: Damage, database: Path) -> bool:
    """Damage the file as planned.  Returns: whether the file exists and is not empty."""
    path = database.with_name(database.name + damage.suffix)
    size = path.stat().st_size if path.exists() else 0
    if not size:
        return False
    with path.open("r+b") as file:
        for share in damage.places:
            place = int(share * size)
            if damage.is_cut:
                file.truncate(place)
                continue
            file.seek(place)
            byte = file.read(1)[0]
            file.seek(place)
            file.write(bytes([byte ^ (1 << place % 8)]))
    return True
