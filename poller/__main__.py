"""Where `ionos-poller` begins, and `python -m poller`, for where no script is installed."""

import gc
import os
import signal

_EXIT_INTERRUPTED = 130  # as in `errors`, which is not imported yet


def main() -> None:
    """Run the command line."""
    gc.disable()  # until the command is loaded: to look through what stays took a twentieth of the start
    # Python's own answer to Ctrl-C is an exception, wherever the program is, and a trace. What has to be ended in order says
    # so (`cli.stopping`, `daemon`); all else may end anywhere. A shell's background job is not to hear Ctrl-C at all.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, lambda *_: os._exit(_EXIT_INTERRUPTED))
    from poller.cli import main as run

    run(prog_name="ionos-poller")


if __name__ == "__main__":
    main()
