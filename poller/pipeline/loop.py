"""The loop that delivers to one sink, for the daemon and for runs that end by themselves: one set of rules for what goes wrong.

| what | then |
| --- | --- |
| the state does not work now (a full disk, a lock, a lost lease) | it is tried again; what the sink has taken is not sent anew |
| the sink ends in an unexpected exception | it waits as after a failed send |
| its own output is gone, and there are other sinks | the same |
| its own output is gone, and it is the only sink; a person must mend the state | the loop ends with the error |
| it refuses our credentials | it is tried again every minute |

The daemon endures the first three and the last for as long as they last. A run that ends by itself endures the first three for
ENDURED_SECONDS since something went well, and refused credentials not at all; then its loop ends with the error. However a loop
ends, what the sink has taken is settled if that can be done.
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
# So often it is looked for what another process put into the outbox (replayed letters), and whether a person asked for a try.
LOOK_SECONDS = 5.0
# While a batch waits to be filled, or a contract to be tried again, what is collected for the others is looked at so often.
_PAUSE_SECONDS = 1.0


class Loop:
    """Delivers to one sink until it is stopped, or has delivered all that was collected. `run` is for one thread."""

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

        `on_settled` is told how many events are, `on_unavailable` and `on_available` how it goes with the state.
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
        """Something was collected, or `stop` was set."""
        self._wakeup.set()

    def end(self) -> None:
        """Nothing more will be collected: no batch waits to be filled, and the loop ends when all is delivered."""
        self._is_last.set()
        self._wakeup.set()

    def run(self) -> None:
        """Deliver.

        Raises: what ends the loop, as the table says: OutputError, StateError, AuthError, or what the sink ended in.
        """
        try:
            while not self._stop.is_set():
                moves()
                # Asked before the step: what is committed in between is delivered by it, or by a later one.
                is_last = self._is_last.is_set()
                wait = self._step(is_last=is_last)
                if wait is None and is_last:
                    return
                self._wait(wait)
        except StoppedError:
            return
        finally:
            with suppress(StateError, StoppedError):  # no room still: the sink gets it twice
                self._deliverer.finish()

    def _step(self, *, is_last: bool) -> float | None:
        """Do one step.  Returns: how long to wait, None until something is collected.  Raises: what ends the loop."""
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
        except Exception as error:  # a mistake of ours in one sink: the others go on, and nothing of it is lost
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
        """Have the sink wait after an error, and the state say why. A trouble of the state shows at the next step."""
        self._endure(error)
        with suppress(StateError, StoppedError):
            return self._deliverer.hold(error)
        return UNAVAILABLE_SECONDS

    def _endure(self, error: Exception) -> None:
        """Raises: the error, where it has lasted for too long."""
        now = self._clock()
        if self._trouble is None:
            self._trouble_since = now
        self._trouble = error
        if now - self._trouble_since >= self._endured_seconds:
            raise error

    def _wait(self, seconds: float | None) -> None:
        """Wait so long, or until something is collected, but not longer than until the next look."""
        if seconds is not None and not self._is_last.is_set():
            # Else each commit would have a batch that waits to be filled read anew.
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
