"""The standing of a sink's deliverer: the place that it holds, whether it is its turn, and how long the sink waits."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from poller.config.sink_base import LocalSink
from poller.core.errors import LeaseLostError
from poller.sinks.base import OwnOutput, Sink
from poller.store.parts import Outbox, Place
from poller.store.rows import DeadLetter


class Standing:
    """The place of one sink: taken, lost, and taken again. For one thread at a time; any thread may call `abandon`."""

    def __init__(self, outbox: Outbox, sink: Sink, clock: Callable[[], float], on_taken: Callable[[int], None]) -> None:
        """`on_taken` is called with the number of failed attempts in a row whenever the place is taken.

        Raises: StateError; LeaseLostError while another deliverer of this process has the place.
        """
        self._outbox = outbox
        self._sink = sink
        self._clock = clock
        self._on_taken = on_taken
        self._place: Place | None = None
        self._is_abandoned = False
        self._is_waiting = False
        self._not_before, self._postponed_at = 0.0, 0.0
        self._parked_at: float | None = None
        self._noted: int | None = None
        self._output = sink if isinstance(sink, OwnOutput) else None
        if self._output is not None:
            self._output.note_offset = self._note_offset
        # A file belongs to one machine, which can resume it. With `shared`, each machine writes a part, and none can resume all.
        settings = sink.settings
        self._is_whole = isinstance(settings, LocalSink) and settings.is_whole
        if isinstance(settings, LocalSink) and settings.shared:
            self._output = None
        self.take()

    # The place

    def take(self) -> None:
        """Take the place if it is not held, and continue from the position in the state.

        Raises: LeaseLostError while another deliverer has it; any error of resuming the output of the sink.
        """
        if self._place is not None:
            return
        place = None if self._is_abandoned else self._outbox.take(self._sink.name, is_whole=self._is_whole)
        if place is None:
            raise LeaseLostError("its place is another's", sink=self._sink.name)
        row = place.row
        self._on_taken(row.attempts)
        # A parked sink is tried at once, because a person may have replaced its key.
        self._not_before = 0.0 if row.parked_at is not None else row.retry_at or 0.0
        self._postponed_at = row.postponed_at or 0.0
        self._parked_at = row.parked_at
        self._place, self._noted = place, row.output_offset
        try:
            if self._output is not None:
                self._output.resume(row.output_offset)
        except BaseException:  # also after an interrupt, the next caller must be able to take the place
            self._place = None
            place.release()
            raise

    def is_our_turn(self) -> bool:
        """Whether this replica delivers the sink. Another replica may deliver a sink that is written as a whole.

        Commits: that this replica does, if no other living replica does.
        """
        if not self._is_whole:
            return True
        is_ours = self.place().hold()
        if is_ours and self._is_waiting:  # what was read of the sink is as of before the other one's last batch
            self.drop()
            self.take()
        self._is_waiting = not is_ours
        return is_ours

    def place(self) -> Place:
        """Raises: LeaseLostError if it was released."""
        if self._place is None:
            raise LeaseLostError("its place was given up", sink=self._sink.name)
        return self._place

    def drop(self) -> None:
        """Release the place. The next step takes it again."""
        place, self._place = self._place, None
        if place is not None:
            place.release()

    def abandon(self) -> None:
        """Write nothing any more: the place belongs to a successor now."""
        self._is_abandoned = True
        if self._place is not None:
            self._place.release()

    def settle(self, count: int, letters: Sequence[DeadLetter]) -> None:
        """Commits: that the next `count` events are finished, these as dead letters, and that the sink does not wait any more."""
        offset = None if self._output is None else self._output.output_offset
        self.place().settle(count, dead=letters, now=self._clock(), output_offset=offset)
        self._noted = offset
        self.end_wait()

    def _note_offset(self, offset: int | None) -> None:
        if offset != self._noted:
            self.place().note_output_offset(offset)
            self._noted = offset

    # Its waits

    def wait_seconds(self) -> float:
        """How many seconds to wait before the next send; 0 for none."""
        now = self._clock()
        # If the clock was set back, a wait of seconds must not become one of hours.
        if not self._postponed_at <= now < self._not_before:
            return 0.0
        # A person who has repaired something may request an attempt at once.
        self._not_before = min(self._not_before, self._outbox.retry_at(self._sink.name) or self._not_before)
        return max(0.0, self._not_before - now)

    def pause(self, seconds: float) -> None:
        """Send nothing for this time. It is not stored, so a restart forgets it."""
        self._postponed_at = self._clock()
        self._not_before = self._postponed_at + seconds

    def postpone(self, attempts: int, seconds: float, reason: str, *, is_parked: bool) -> None:
        """Commits: the number of failed attempts, the reason, and that the sink is tried again after these seconds."""
        self.pause(seconds)
        self._parked_at = (self._parked_at or self._postponed_at) if is_parked else None
        self.place().postpone(attempts, self._postponed_at, self._not_before, reason, parked_at=self._parked_at)

    def end_wait(self) -> None:
        """The sink accepts events again."""
        self._not_before, self._parked_at = 0.0, None
