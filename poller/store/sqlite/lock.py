"""The lock file of a state: which process holds the state, and whether the state was created.

The first line is the process number, padded to a fixed length, so that a write does not change the second line. The second line
says that the state was created. If it is there and the state's file is missing, somebody deleted that file. The line is written
after the state's file has its name, and deleted before the file. So a kill never leaves a line about a state that did not exist.
"""

from __future__ import annotations

import fcntl
import os
import threading
from contextlib import suppress
from pathlib import Path

from poller.core.errors import StateError, StateHeldError, StoppedError
from poller.store.sqlite.translation import translated_os
from poller.system.files import give_to_owner_of, open_own

_LOCK_POLL_SECONDS = 0.1
_PID_BYTES = 20
_CREATED = b"state created"


class Lock:
    """The right to write one state, held by one process at a time; the kernel releases it when the process ends."""

    def __init__(self, path: Path, *, wait: bool = False, stop: threading.Event | None = None) -> None:
        """With `wait`, wait until the other process releases it, or `stop`.  Raises: StateHeldError, StoppedError, StateError."""
        stop = stop or threading.Event()
        with translated_os(path):
            self._fd = _open(path, os.O_RDWR | os.O_CREAT)
        give_to_owner_of(path.parent, self._fd)
        while True:
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                holder = os.pread(self._fd, _PID_BYTES, 0).decode("ascii", "replace").strip() or "unknown"
                if not wait:
                    os.close(self._fd)
                    hint = "stop one of the two, or give it another --state-dir"
                    raise StateHeldError(
                        f"{path}: another process holds this state (process {holder})", hint=hint
                    ) from None
                if stop.wait(_LOCK_POLL_SECONDS):
                    os.close(self._fd)
                    raise StoppedError("asked to stop") from None
            except OSError as error:
                os.close(self._fd)
                raise StateError(
                    f"{path}: cannot be locked: {error.strerror}", hint="choose a --state-dir on a local file system"
                ) from error
        with suppress(OSError):  # only messages, `check` and `reload` use the number: a full disk must not stop us
            os.pwrite(self._fd, b"%-*d\n" % (_PID_BYTES - 1, os.getpid()), 0)

    def remember_created(self) -> None:
        """Note that the state was created. If the disk is full, the next start notes it."""
        with suppress(OSError):
            if _CREATED not in os.pread(self._fd, 100, _PID_BYTES):
                os.pwrite(self._fd, _CREATED + b"\n", _PID_BYTES)

    def release(self) -> None:
        os.close(self._fd)


def lock_of(path: Path) -> Path:
    """The lock file of a state file."""
    return path.with_suffix(".lock")


def check_lock(path: Path) -> None:
    """Check that a start may use this lock file, or create it.  Raises: StateError if not."""
    with translated_os(path), suppress(FileNotFoundError):
        os.close(_open(path, os.O_RDWR | os.O_NONBLOCK))  # it may be a pipe that somebody put there


def was_created(path: Path) -> bool:
    """Whether the lock file of this state file says that the state was created."""
    try:
        descriptor = _open(lock_of(path), os.O_RDONLY | os.O_NONBLOCK)  # it may be a pipe that somebody put there
        try:
            return _CREATED in os.pread(descriptor, 100, _PID_BYTES)
        finally:
            os.close(descriptor)
    except OSError:
        return False


def forget_created(path: Path) -> None:
    """Remove the note that the state was created, before the state is deleted or set aside.  Raises: StateError."""
    if not was_created(path):
        return
    with translated_os(lock_of(path)):
        descriptor = _open(lock_of(path), os.O_RDWR)
        try:
            os.ftruncate(descriptor, _PID_BYTES)
        finally:
            os.close(descriptor)


def _open(path: Path, flags: int) -> int:
    # Root may work on the state of a service. The directory then belongs to the service's user.
    owner = path.parent.stat().st_uid if os.geteuid() == 0 else 0
    return open_own(path, flags, owners={owner})
