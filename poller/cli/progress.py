"""The progress of a backfill: bars on a terminal, otherwise a line in the log every minute."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self, TextIO

from poller.cli.messages import settle
from poller.core.windows import Window, format_time
from poller.pipeline.collect import WindowCommitted
from poller.store.overview import Overview
from poller.system.terminals import is_capable

log = logging.getLogger("poller.backfill")


class LogProgress:
    """A line in the log every `tick_seconds`."""

    tick_seconds = 60.0

    def __init__(self, contracts: Sequence[str], window: Window, read: Callable[[], Overview]) -> None:
        self._window = window
        self._read = read
        self._started = time.monotonic()
        self.windows = dict.fromkeys(contracts, 0)
        self.entries = dict.fromkeys(contracts, 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing to clean up."""

    def after_window(self, done: WindowCommitted) -> None:
        """Call this after every committed window. Several threads may call it, but only one for each contract."""
        self.windows[done.contract] += 1
        self.entries[done.contract] += done.fetched

    def share(self, watermark: int) -> float:
        """How much of the range is done, from 0 to 1."""
        return min(1.0, max(0.0, (watermark - self._window.start) / max(1, self._window.seconds)))

    def show(self, delivered: int) -> None:
        """Log the progress."""
        contracts = self._read().contracts
        done = sum(self.share(row.watermark) for row in contracts) / max(1, len(contracts))
        seconds = time.monotonic() - self._started
        entries = sum(self.entries.values())
        log.info(
            "backfill.progressed",
            extra={
                "share": round(done, 3),
                "entries": entries,
                "windows": sum(self.windows.values()),
                "delivered": delivered,
                "entries_per_second": round(entries / max(seconds, 0.001)),
                "complete_up_to": format_time(min((row.watermark for row in contracts), default=self._window.start)),
            },
        )


class BarProgress(LogProgress):
    """A bar per contract on stderr, with entries, windows, rate and time left."""

    tick_seconds = 0.25

    def __init__(self, contracts: Sequence[str], window: Window, read: Callable[[], Overview]) -> None:
        super().__init__(contracts, window, read)
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.fields[entries]:,} entries  windows: {task.fields[windows]}  {task.fields[rate]:,}/s"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            auto_refresh=False,
        )
        self._handlers: list[tuple[logging.StreamHandler[TextIO], int]] = []
        self._tasks = {
            contract: self._bars.add_task(contract, total=1.0, entries=0, windows=0, rate=0) for contract in contracts
        }

    def __enter__(self) -> Self:
        before = sys.stderr
        self._bars.start()
        # Log lines are printed above the bars. Below WARNING they are left out, because the bars show the same.
        for handler in logging.getLogger().handlers:
            if isinstance(handler, logging.StreamHandler) and handler.stream is before:
                self._handlers.append((handler, handler.level))
                handler.setStream(sys.stderr)
                if not logging.getLogger().isEnabledFor(logging.DEBUG):
                    handler.setLevel(logging.WARNING)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the bars, which stay visible, and restore the terminal and the log."""
        self._bars.stop()
        for handler, level in self._handlers:
            handler.setStream(sys.stderr)
            handler.setLevel(level)
        self._handlers.clear()
        settle()

    def show(self, delivered: int) -> None:
        """Move the bars."""
        seconds = max(0.001, time.monotonic() - self._started)
        for row in self._read().contracts:
            if row.contract in self._tasks:
                entries = self.entries[row.contract]
                self._bars.update(
                    self._tasks[row.contract],
                    completed=self.share(row.watermark),
                    entries=entries,
                    windows=self.windows[row.contract],
                    rate=round(entries / seconds),
                )
        self._bars.refresh()


def progress_for(contracts: Sequence[str], window: Window, read: Callable[[], Overview]) -> LogProgress:
    """Bars if stderr is a terminal, otherwise lines in the log."""
    return (BarProgress if is_capable(sys.stderr) else LogProgress)(contracts, window, read)
