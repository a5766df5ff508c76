"""What tests of all kinds need: an environment without settings from outside, and waiting for a condition."""

from __future__ import annotations

import os
import random
import re
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

TOP = Path(__file__).resolve().parent.parent
COMMAND = (sys.executable, "-m", "poller")

Answer = TypeVar("Answer")

FOREIGN_PREFIXES = ("IONOS_", "AWS_", "PYTHON", "COVERAGE_")
FOREIGN_NAMES = {
    *("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"),
    *("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR", "NETRC"),
    *(
        "STATE_DIRECTORY",
        "CREDENTIALS_DIRECTORY",
        "NOTIFY_SOCKET",
        "WATCHDOG_USEC",
        "WATCHDOG_PID",
        "INVOCATION_ID",
    ),
    *("NO_COLOR", "FORCE_COLOR", "TERM", "COLUMNS", "LINES"),
}


# How coverage finds the processes that a test starts.
MEASURING = "COVERAGE_PROCESS_CONFIG"
# For tests of the cost of a process, or of a process that cannot write files: coverage takes time and writes a file.
UNMEASURED = {MEASURING: ""}


def is_foreign_setting(name: str) -> bool:
    """Whether this variable would change what the program does. Tests must not inherit it."""
    return name != MEASURING and (name.upper() in FOREIGN_NAMES or name.startswith(FOREIGN_PREFIXES))


def clean_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Our environment without variables that change the program's behaviour; with warnings as errors; then `extra`."""
    kept = {name: value for name, value in os.environ.items() if not is_foreign_setting(name)}
    return kept | {"PYTHONPATH": str(TOP), "PYTHONWARNINGS": "error"} | dict(extra or {})


def wait_until(predicate: Callable[[], Answer], timeout: float = 45, *, what: str = "") -> Answer:
    """Call `predicate` until its answer is true, and return it. Raises AssertionError with `what` after `timeout` seconds.

    The default is long enough for a busy machine, and below a minute: after one, the program does much by itself.
    """
    deadline = time.monotonic() + timeout
    while True:
        asked = time.thread_time()
        answer = predicate()
        if answer:
            return answer
        if time.monotonic() >= deadline:
            raise AssertionError(f"not within {timeout:g} s: {what or getattr(predicate, '__name__', predicate)}")
        asked_seconds = time.thread_time() - asked
        time.sleep(min(max(0.02, 9 * asked_seconds), 0.25))  # a slow predicate is called less often


def take_interrupts() -> None:
    """Make Ctrl-C end the processes that we start, even if we ignore it, as a background job of a shell does."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def open_files(pid: int) -> list[str]:
    """The open files of a process, as the kernel names them. It may close some of them meanwhile."""
    found = []
    for descriptor in os.listdir(f"/proc/{pid}/fd"):  # noqa: PTH208 - /proc is no place for pathlib's extra calls
        with suppress(FileNotFoundError):
            found.append(os.readlink(f"/proc/{pid}/fd/{descriptor}"))  # noqa: PTH115 - the same
    return found


# Read at import, because tests have a clean environment.
_SEED = os.environ.get("IONOS_POLLER_TEST_SEED")


def seed_of_chance() -> int:
    """The seed for a random test: a new one each time, unless $IONOS_POLLER_TEST_SEED names one.

    It is printed, so that pytest shows it if the test fails.
    """
    seed = int(_SEED) if _SEED else random.SystemRandom().randrange(10**6)
    print(f"IONOS_POLLER_TEST_SEED={seed}")
    return seed


def free_port() -> int:
    """A free TCP port, for an address that must refuse connections or be known in advance."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def is_plain(text: str) -> bool:
    """Whether a text can follow "<key>: ...": one line, no full stop, and no capital at its start except that of a name."""
    is_begun = re.match(r"[^A-Z]|[A-Z]+_[A-Z_]+ |[A-Z][a-z]+[- ]", text) is not None
    return is_begun and text.isprintable() and not text.endswith(".")
