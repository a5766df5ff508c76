"""Examines a state from outside, for `check`: whether it is sound, and who holds it. It writes and sets aside nothing."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from poller.core.errors import StateError
from poller.store.sqlite.connection import SIDE_FILES, attach, detach
from poller.store.sqlite.database import newer_schema, vanished, way_out
from poller.store.sqlite.lock import was_created
from poller.store.sqlite.schema import APPLICATION_ID, SCHEMA_VERSION, schema_at
from poller.store.sqlite.soundness import is_sound
from poller.store.sqlite.translation import DAMAGE, SQLITE_ERRORS, kind_of, translated_reading

_DAMAGED_HINT = (
    "the next start sets it aside and says so; then run once with --since T, T at or before the last good run:"
    " the API still holds the data"
)


def schema_of(path: Path) -> int:
    """The schema version of a state file that is ours and sound.

    Raises: StateError if it is not, cannot be read, or was written by a newer program.
    """
    with translated_reading(path, hint="check that it belongs to this user"):
        try:
            version = _sound_version(path)
        except SQLITE_ERRORS as error:
            if kind_of(error) in DAMAGE:
                raise StateError(f"{path} is damaged or not an SQLite file", hint=_DAMAGED_HINT) from error
            raise
    if version > SCHEMA_VERSION:
        raise newer_schema(path, version)
    return version


def is_older(path: Path) -> bool:
    """Whether a state file is of an older version of this program.  Raises: StateError when it cannot be read."""
    with translated_reading(path):
        shared = attach(path, is_writable=False)
        try:
            with shared.lock:
                return int(shared.raw.execute("PRAGMA user_version").fetchone()[0]) < SCHEMA_VERSION
        finally:
            detach(shared)


def _sound_version(path: Path) -> int:
    shared = attach(path, is_writable=False)
    try:
        with shared.lock:
            query = shared.raw.execute
            if query("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
                raise StateError(f"{path} is not a state of ionos-poller", hint=_DAMAGED_HINT)
            version = int(query("PRAGMA user_version").fetchone()[0])
            is_known = version > SCHEMA_VERSION or is_sound(shared.raw, path, schema_at(version))
            if not (shared.has_known_format and is_known):
                raise StateError(f"{path} is damaged", hint=_DAMAGED_HINT)
            return version
    finally:
        detach(shared)


def missing_in(directory: Path) -> dict[str, StateError]:
    """The uses whose state was set aside or has vanished, and was not created again. A person must decide before they start."""
    found: dict[str, Path] = {}
    for aside in sorted(directory.glob("*.db.unusable-*")):
        use = aside.name.partition(".db.")[0]
        if not aside.name.endswith(SIDE_FILES) and not (directory / f"{use}.db").exists():
            found[use] = aside
    gone = {lock.stem: lock.with_suffix(".db") for lock in sorted(directory.glob("*.lock"))}
    return {use: vanished(path) for use, path in gone.items() if not path.exists() and was_created(path)} | {
        use: StateError(f"{use}.db was set aside as {aside.name}", hint=way_out(aside)) for use, aside in found.items()
    }


def holder_of(path: Path) -> int | None:
    """The process that holds this lock file, or None.

    It tries the lock only if the process named in the file is alive. Otherwise it could block a process that is just starting.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    pid = 0
    try:
        pid = int(os.pread(descriptor, 20, 0) or b"0")
        if pid <= 0 or not _is_alive(pid):
            return None
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return pid
    except (OSError, ValueError):
        return None
    finally:
        os.close(descriptor)
    return None


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
