"""The findings of `check` on a state directory: write access, free space, whether its files are sound, and who holds them."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from poller.config import format_size
from poller.core.errors import EXIT_STATE, StateError
from poller.store.rows import Diagnosis
from poller.store.sqlite.database import refuse_open
from poller.store.sqlite.inspection import holder_of, missing_in, schema_of
from poller.store.sqlite.lock import check_lock, lock_of
from poller.store.sqlite.schema import SCHEMA_VERSION
from poller.store.sqlite.translation import translated_os

MIB = 1 << 20
WARN_FREE_BYTES = 200 * MIB
FAIL_FREE_BYTES = 16 * MIB


def diagnose(directory: Path, max_bytes: int) -> Iterator[Diagnosis]:
    """All findings on the state. `max_bytes` is the limit of the outbox."""
    directory = directory.absolute()
    writable = check_directory(directory)
    yield writable
    if writable.level == "ok":
        yield check_space(shutil.disk_usage(_existing(directory)).free, max_bytes, directory)
    if os.access(directory, os.X_OK):  # otherwise the finding above says why
        yield from check_files(directory)


def check_directory(directory: Path) -> Diagnosis:
    """Check that this user, and no other, can write there, or can create the directory if it does not exist."""
    existing = _existing(directory)
    try:
        with translated_os(existing), tempfile.TemporaryFile(dir=existing, buffering=0) as file:
            file.write(b"\n")
        with translated_os(directory), contextlib.suppress(FileNotFoundError):
            directory.lstat()  # a name that is too long cannot be created
    except StateError as error:
        return _failed("state", error)
    if existing != directory:
        return Diagnosis("ok", "state", f"{directory}: writable, will be created")
    try:
        refuse_open(directory)
    except StateError as error:
        return _failed("state", error)
    return Diagnosis("ok", "state", f"{directory}: writable")


def _existing(directory: Path) -> Path:
    """The directory, or its nearest parent that exists."""
    while not os.path.lexists(directory) and directory != directory.parent:
        directory = directory.parent
    return directory


def check_space(free_bytes: int, max_bytes: int, directory: Path) -> Diagnosis:
    """Check that there is room for the events that may have to wait."""
    free = f"{directory}: {_rounded(free_bytes)} free"
    if free_bytes < FAIL_FREE_BYTES:
        hint = "free some space, or choose another --state-dir"
        return Diagnosis("fail", "disk", f"{free}: nearly full", hint, EXIT_STATE)
    if free_bytes < max_bytes:
        hint = (
            "lower outbox.max_bytes, or free some space; when the disk is full, collecting pauses and nothing is lost"
        )
        return Diagnosis("warn", "disk", f"{free}, less than outbox.max_bytes, {format_size(max_bytes)}", hint)
    if free_bytes < WARN_FREE_BYTES:
        return Diagnosis("warn", "disk", f"{free}: not much", "free some space, or choose another --state-dir")
    return Diagnosis("ok", "disk", free)


def _rounded(size_bytes: int) -> str:
    """A size for people, rounded, in the largest unit that fits."""
    for factor, unit in ((1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB")):
        if size_bytes >= factor:
            return f"{size_bytes / factor:.1f} {unit}"
    return f"{size_bytes / 1024:.0f} KiB"


def check_files(directory: Path) -> Iterator[Diagnosis]:
    """Check the file of each use: it must be ours, sound, and of a known schema. Also says who holds it."""
    for path in sorted(directory.glob("*.db")):
        name = f"state {path.stem}"
        try:
            version = schema_of(path)
            check_lock(lock_of(path))
        except StateError as error:
            yield _failed(name, error)
            continue
        is_current = version == SCHEMA_VERSION
        schema = f"schema {version}" if is_current else f"schema {version}, upgraded at the next start"
        pid = holder_of(lock_of(path))
        held = f"; in use by process {pid}" if pid else "; not in use"
        use = path.stem if is_current else ""
        yield Diagnosis("ok", name, f"{path.name}: sound, {schema}{held}", use=use)
    for use, missing in missing_in(directory).items():
        yield _failed(f"state {use}", missing)


def _failed(name: str, error: StateError) -> Diagnosis:
    return Diagnosis("fail", name, error.message, error.hint, error.exit_code)
