"""Where the deliverer of a sink stands: the place that it holds, whose turn it is, and until when the sink waits."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from poller.config.sink_base import LocalSink
from poller.core.errors import LeaseLostError
from poller.sinks.base import OwnOutput, Sink
from poller.store.parts import Outbox, Place
from poller.store.rows import DeadLetter


class Standing:
    """The place of one sink: taken, lost, taken anew. One thread at a time uses it; any may call `abandon`."""

    def __init__(self, outbox: Outbox, sink: Sink, clock: Callable[[], float], on_taken: Callable[[int], None]) -> None:
        """`on_taken` is told how many attempts in a row have failed, whenever the place is taken.

        Raises: StateError; LeaseLostError while another deliverer of this process has it.
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
        # On one machine's disk there is all of it, or, where every machine writes a part, nothing that all of them could resume.
        settings = sink.settings
        self._is_whole = isinstance(settings, LocalSink) and settings.is_whole
        if isinstance(settings, LocalSink) and settings.shared:
            self._output = None
        self.take()

    # The place

    def take(self) -> None:
        """Take the place if it is not held, and go on from where the state says that it is.

        Raises: LeaseLostError while another has it; what the output of the sink cannot be resumed for.
        """
        if self._place is not None:
            return
        place = None if self._is_abandoned else self._outbox.take(self._sink.name, is_whole=self._is_whole)
        if place is None:
            raise LeaseLostError("its place is another's", sink=self._sink.name)
        row = place.row
        self._on_taken(row.attempts)
        # A parked sink is tried at once: a person may just have replaced its key.
        self._not_before = 0.0 if row.parked_at is not None else row.retry_at or 0.0
        self._postponed_at = row.postponed_at or 0.0
        self._parked_at = row.parked_at
        self._place, self._noted = place, row.output_offset
        try:
            if self._output is not None:
                self._output.resume(row.output_offset)
        except BaseException:  # an interrupt, too, must not keep the place from the next who asks
            self._place = None
            place.release()
            raise

    def is_our_turn(self) -> bool:
        """Whether this replica delivers the sink: of a place that is whole, another one may, also one of this machine.

        Commits: that it does, if no other one that lives does.
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
        """Raises: LeaseLostError once it was given up."""
        if self._place is None:
            raise LeaseLostError("its place was given up", sink=self._sink.name)
        return self._place

    def drop(self) -> None:
        """Give it back: it is taken anew with the next step."""
        place, self._place = self._place, None
        if place is not None:
            place.release()

    def abandon(self) -> None:
        """Write nothing any more: from here on the place is a successor's."""
        self._is_abandoned = True
        if self._place is not None:
            self._place.release()

    def settle(self, count: int, letters: Sequence[DeadLetter]) -> None:
        """Commits: that the next events are done with, these as dead letters, and that the sink waits no more."""
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
        """How long nothing may be sent yet; 0 if it may."""
        now = self._clock()
        # Before the postponement was even made: the clock was set back, and must not make a wait of seconds one of hours.
        if not self._postponed_at <= now < self._not_before:
            return 0.0
        # A person who has mended something may ask for a try at once.
        self._not_before = min(self._not_before, self._outbox.retry_at(self._sink.name) or self._not_before)
        return max(0.0, self._not_before - now)

    def pause(self, seconds: float) -> None:
        """Send nothing for so long, which a restart may forget."""
        self._postponed_at = self._clock()
        self._not_before = self._postponed_at + seconds

    def postpone(self, attempts: int, seconds: float, reason: str, *, is_parked: bool) -> None:
        """Commits: that nothing was sent, for so many attempts, why, and that it is tried again after so many seconds."""
        self.pause(seconds)
        self._parked_at = (self._parked_at or self._postponed_at) if is_parked else None
        self.place().postpone(attempts, self._postponed_at, self._not_before, reason, parked_at=self._parked_at)

    def end_wait(self) -> None:
        """The sink takes what it is sent."""
        self._not_before, self._parked_at = 0.0, None
