"""stderr that never blocks: text is queued, and one thread writes it out.

A reader that hangs (a full pipe, a stopped terminal) would otherwise block the next thread that logs, and every thread that waits
for it. The queue is bounded. Lines that do not fit are dropped and counted; as soon as lines are written
again, one line in their place says how many. Order is kept.
"""

from __future__ import annotations

import io
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress

_MAX_BYTES = 256 * 1024
# At the end: wait until the reader reads nothing for IDLE_SECONDS, but at most FLUSH_SECONDS.
IDLE_SECONDS = 1.0
_MOMENT_SECONDS = 0.1
FLUSH_SECONDS = 5.0


class LogStream(io.TextIOBase):
    """Text for a file descriptor. Safe to use from several threads; each `write` goes out whole, or not at all."""

    def __init__(self, descriptor: int, *, max_bytes: int = _MAX_BYTES) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._max_bytes = max_bytes
        self._waiting: deque[tuple[bytes, int]] = deque()  # each with the number of dropped lines that it reports
        self._waiting_bytes = 0
        self._written = 0  # so far, to see whether the reader reads
        self._is_dropping = False
        self._untold = 0
        self._changed = threading.Condition()
        self._writer: threading.Thread | None = None
        self.dropped = 0
        """Lines that were not written, since the start."""
        self.notice: Callable[[int], str] = lambda lines: (
            f"{lines} log lines were dropped: they were not read in time\n"
        )
        """Makes the line that says how many were dropped."""

    # Attributes of a text stream. They are properties because the base class does not allow assignment.

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return "utf-8"

    @property
    def errors(self) -> str:  # type: ignore[override]
        return "backslashreplace"

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def write(self, text: str) -> int:
        """Queue the text, or drop it if the queue is full. Never waits, never fails."""
        data = text.encode(self.encoding, self.errors)
        if not data:
            return 0
        with self._changed:
            # After it was full, half of it must be free. Otherwise a slow reader gets lines and counts of dropped ones in turn.
            limit = self._max_bytes // 2 if self._is_dropping else self._max_bytes
            self._is_dropping = self._waiting_bytes + len(data) > limit
            if self._is_dropping:
                self._drop(data)
            else:
                self._tell()
                self._append(data)
            self._start()
            self._changed.notify_all()
        return len(text)

    def settle(self) -> None:
        """Wait a moment until the queue is written, so that a terminal shows it before the next output of another stream."""
        with self._changed:
            self._changed.wait_for(lambda: not self._waiting, _MOMENT_SECONDS)

    def finish(self) -> None:
        """Wait until all is written, as long as the reader reads; do not wait for a reader that hangs."""
        deadline = time.monotonic() + FLUSH_SECONDS
        with self._changed:
            written = -1
            while self._waiting and self._written != written and time.monotonic() < deadline:
                written = self._written
                self._changed.wait_for(lambda: not self._waiting, IDLE_SECONDS)

    def _append(self, data: bytes, told: int = 0) -> None:
        self._waiting.append((data, told))
        self._waiting_bytes += len(data)

    def _drop(self, data: bytes) -> None:
        lines = data.count(b"\n")
        self.dropped += lines
        self._untold += lines

    def _tell(self) -> None:
        if self._untold:
            self._append(self.notice(self._untold).encode(self.encoding, self.errors), self._untold)
            self._untold = 0

    def _start(self) -> None:
        if self._writer is None:
            writer = threading.Thread(target=self._write_out, name="log", daemon=True)
            with suppress(RuntimeError):  # no more threads can start: the next line tries again
                writer.start()
                self._writer = writer

    def _write_out(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting)
                data, told = self._waiting[0]  # it stays there until it is written, because `finish` waits for it
            is_out = self._is_out(data)
            with self._changed:
                self._waiting.popleft()
                self._waiting_bytes -= len(data)
                if not is_out and told:
                    self._untold += told  # not reported yet; the notice itself is not counted
                elif not is_out:
                    self._drop(data)
                elif not self._waiting:
                    self._tell()
                self._changed.notify_all()

    def _is_out(self, data: bytes) -> bool:
        """Write all data, without a time limit; False if it fails: the reader is gone, or the disk is full."""
        rest = memoryview(data)
        try:
            while rest:
                count = os.write(self._descriptor, rest)
                self._written += count
                rest = rest[count:]
        except OSError:
            return False
        return True
