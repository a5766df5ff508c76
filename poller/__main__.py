"""The entry point of `ionos-poller`, and of `python -m poller` if no script is installed."""

import gc
import os
import signal

_EXIT_INTERRUPTED = 130  # as in `errors`, which is not imported yet


def main() -> None:
    """Run the command line."""
    gc.disable()  # until the command is loaded: collecting garbage before that took 5% of the start and finds none
    # By default, Python raises an exception at Ctrl-C, at any place, and prints a trace. Commands that must end in order install
    # their own handler (`cli.stopping`, `daemon`); all others may end anywhere. A shell's background job ignores Ctrl-C.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, lambda *_: os._exit(_EXIT_INTERRUPTED))
    from poller.cli import main as run

    run(prog_name="ionos-poller")


if __name__ == "__main__":
    main()
