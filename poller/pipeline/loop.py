"""The loop that delivers to one sink, for the daemon and for one-off runs. Both use the same rules for errors.

| what | then |
| --- | --- |
| the state does not work now (a full disk, a lock, a lost lease) | it is tried again; what the sink has taken is not sent anew |
| the sink ends in an unexpected exception | it waits as after a failed send |
| its own output is gone, and there are other sinks | the same |
| its own output is gone, and it is the only sink; a person must mend the state | the loop ends with the error |
| it refuses our credentials | it is tried again every minute |

The daemon retries the first three and the last without end. A one-off run retries the first three for ENDURED_SECONDS after the
last success, and refused credentials not at all; then its loop ends with the error. However a loop ends, events that the sink has
accepted are settled if possible.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from poller.core.errors import (
    AuthError,
    OutputError,
    PollerError,
    StateError,
    StateUnavailableError,
    StoppedError,
)
from poller.pipeline.deliver import Deliverer
from poller.system.liveness import moves

log = logging.getLogger(__name__)

ENDURED_SECONDS = 5.0
UNAVAILABLE_SECONDS = 3.0
# How often to look for events of another process (replayed letters), and for a person's request for an attempt.
LOOK_SECONDS = 5.0
# How often to look for new events while a batch waits to be filled, or a contract waits for its next attempt.
_PAUSE_SECONDS = 1.0


class Loop:
    """Delivers to one sink until it is stopped, or until all collected events are delivered. `run` is for one thread."""

    def __init__(
        self,
        deliverer: Deliverer,
        stop: threading.Event,
        *,
        is_alone: bool,
        endured_seconds: float = ENDURED_SECONDS,
        on_settled: Callable[[int], None] = lambda count: None,
        on_unavailable: Callable[[StateUnavailableError], None] = lambda error: None,
        on_available: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`is_alone`: there is no other sink. `endured_seconds` is infinite for a daemon.

        `on_settled` is called with the number of settled events, `on_unavailable` if the state does not work, `on_available` if
        it does.
        """
        self._deliverer = deliverer
        self._stop = stop
        self._is_alone = is_alone
        self._endured_seconds = endured_seconds
        self._on_settled = on_settled
        self._on_unavailable = on_unavailable
        self._on_available = on_available
        self._clock = clock
        self._wakeup = threading.Event()
        self._is_last = threading.Event()
        self._trouble: Exception | None = None
        self._trouble_since = 0.0

    def wake(self) -> None:
        """End a wait: something was collected, or `stop` was set."""
        self._wakeup.set()

    def end(self) -> None:
        """Nothing more will be collected: a batch does not wait to be filled, and the loop ends when all is delivered."""
        self._is_last.set()
        self._wakeup.set()

    def run(self) -> None:
        """Deliver until the end.

        Raises: the error that ends the loop, see the table: OutputError, StateError, AuthError, or an exception of the sink.
        """
        try:
            while not self._stop.is_set():
                moves()
                # Read before the step, so that events that are committed meanwhile are delivered by this step or a later one.
                is_last = self._is_last.is_set()
                wait = self._step(is_last=is_last)
                if wait is None and is_last:
                    return
                self._wait(wait)
        except StoppedError:
            return
        finally:
            with suppress(StateError, StoppedError):  # still no room: the sink gets these events twice
                self._deliverer.finish()

    def _step(self, *, is_last: bool) -> float | None:
        """Do one step.  Returns: seconds to wait; None: until something is collected.  Raises: the error that ends the loop."""
        try:
            settled, wait = self._deliverer.step(is_last=is_last)
        except StoppedError:
            raise
        except StateUnavailableError as error:
            self._endure(error)
            self._on_unavailable(error)
            return UNAVAILABLE_SECONDS
        except OutputError as error:
            if self._is_alone:
                raise
            return self._hold(error)  # stdout is gone or full: the other sinks go on
        except PollerError:
            raise
        except Exception as error:  # a bug of ours in one sink: the others go on, and no event is lost
            log.exception("sink.crashed", extra={"sink": self._deliverer.sink_name})
            return self._hold(error)
        if settled or wait is None or isinstance(self._trouble, StateUnavailableError):
            self._trouble = None
        self._on_available()
        if settled:
            self._on_settled(settled)
        if self._deliverer.refusal and self._endured_seconds < math.inf:
            hint = "nothing is lost: correct that and run the same command again"
            raise AuthError(self._deliverer.refusal, sink=self._deliverer.sink_name, hint=hint)
        return wait

    def _hold(self, error: Exception) -> float:
        """Let the sink wait after an error, and store why. A failure of the state shows at the next step."""
        self._endure(error)
        with suppress(StateError, StoppedError):
            return self._deliverer.hold(error)
        return UNAVAILABLE_SECONDS

    def _endure(self, error: Exception) -> None:
        """Raises: the error, if it has lasted too long."""
        now = self._clock()
        if self._trouble is None:
            self._trouble_since = now
        self._trouble = error
        if now - self._trouble_since >= self._endured_seconds:
            raise error

    def _wait(self, seconds: float | None) -> None:
        """Wait these seconds, or until something is collected, but at most until the next look."""
        if seconds is not None and not self._is_last.is_set():
            # Otherwise each commit would read a batch again that waits to be filled.
            pause = min(seconds, _PAUSE_SECONDS)
            moves(pause)
            if self._is_last.wait(pause):
                return
            seconds -= pause
        if seconds is None or seconds > 0:
            seconds = LOOK_SECONDS if seconds is None else min(seconds, LOOK_SECONDS)
            moves(seconds)
            self._wakeup.wait(seconds)
            self._wakeup.clear()
