"""The real command as a process that is forked from one with all imports: Python starts and imports only once.

`Forked` is `subprocess.Popen`, except for how the process starts. A second process, the template, imports the program and waits.
For each command it forks. The new process takes over the directory, the environment and the three streams, and then runs the
command as `python -m` would: with its own signals, exit code, limits and end. It is our child, not the template's.
Tests that depend on how a process starts, or on its resources, use `subprocess`: see `can_be_forked`.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import os
import runpy
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any, AnyStr

import coverage
import msgspec

from tests.support import MEASURING, UNMEASURED, clean_environment

_BE_PARENT_OF_ORPHANS = 36  # PR_SET_CHILD_SUBREAPER of prctl(2), which only Linux has
_ORDER_BYTES = 200_000  # for an environment and a command line; a socket takes a message of at least this size
# Variables that are read only at the start: by Python, the C library, and the fault harness, which loads its clock first.
_READ_AT_START = ("PYTHON", "LC_", "LANG", "TZ", "LD_", "MALLOC_", "FAULT_CLOCK")


class _Order(msgspec.Struct):
    module: str
    arguments: list[str]
    directory: str
    environment: dict[str, str]


def can_be_forked(command: Sequence[str], environment: Mapping[str, str]) -> bool:
    """Whether a forked process does the same as a started one."""
    usual = _usual()
    return (
        sys.platform == "linux"
        and list(command[:2]) == [sys.executable, "-m"]
        and all(
            environment.get(name, "") == usual.get(name, "")
            for name in {*environment, *usual}
            if name.startswith(_READ_AT_START)
        )
    )


class Forked(subprocess.Popen[AnyStr]):
    """`Popen([python, "-m", module, ...], cwd=..., env=...)`, forked."""

    def _execute_child(self, *given: Any) -> None:
        """Start the process. This overrides a private method of `Popen`; everything else of `Popen` stays unchanged."""
        (_, _, *arguments), _, _, _, _, directory, environment, _, _, _, *pipes = given[:16]
        module, *rest = arguments
        read_stdin, _, _, write_stdout, _, write_stderr = pipes
        try:
            order = _Order(module, rest, str(Path(directory)), dict(environment))
            self.pid = _template().fork(order, read_stdin, write_stdout, write_stderr)
            self._child_created = True
        finally:
            self._close_pipe_fds(*pipes)


class _Template:
    """The process that forks, for all tests of this process. It ends when this process ends."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._lock = Lock()
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.forked", str(theirs.fileno())],
                env=_usual(),
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )
        atexit.register(self.close)

    def fork(self, order: _Order, *streams: int) -> int:
        """Start a process for the order, as our child.  Returns: its number. For a stream of -1 it gets ours."""
        given = [ours if stream == -1 else stream for ours, stream in enumerate(streams)]
        with self._lock:
            self._be_parent_of_orphans(True)
            try:
                socket.send_fds(self._ours, [msgspec.json.encode(order)], given)
                return int(self._ours.recv(20))
            finally:
                self._be_parent_of_orphans(False)

    def close(self) -> None:
        self._ours.close()
        self._process.wait()

    def _be_parent_of_orphans(self, is_so: bool) -> None:
        if self._libc.prctl(_BE_PARENT_OF_ORPHANS, int(is_so), 0, 0, 0):
            raise OSError(ctypes.get_errno(), "prctl")


@cache
def _usual() -> dict[str, str]:
    return clean_environment(UNMEASURED)


@cache
def _template() -> _Template:
    return _Template()


# In the template


def main(descriptor: int) -> None:
    """Fork for each order, until the process that sends them has ended. In a forked process, run the command."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # only the forked processes handle Ctrl-C
    import poller.checks
    import poller.cli.compose
    import poller.service.daemon  # noqa: F401 - for the modules that these import

    gc.collect()
    gc.freeze()  # the garbage collector skips these objects, so that their memory stays shared
    with socket.socket(fileno=descriptor) as orders:
        while True:
            message, descriptors, *_ = socket.recv_fds(orders, _ORDER_BYTES, 3)
            if not message:
                return
            order = msgspec.json.decode(message, type=_Order)
            pid = _fork_orphan()
            if pid == 0:
                break
            for given in descriptors:
                os.close(given)
            orders.send(b"%d" % pid)
    _become(order, descriptors)
    if os.environ.get(MEASURING):
        coverage.process_startup()  # code that runs at import is measured in the process of the tests
    runpy.run_module(order.module, run_name="__main__", alter_sys=True)


def _fork_orphan() -> int:
    """Fork twice, so that the new process is not our child.  Returns: its number; 0 in the new process."""
    read, write = os.pipe()
    between = os.fork()
    if between == 0:
        if pid := os.fork():
            os.write(write, b"%d" % pid)
            os._exit(0)
        os.close(read)
        os.close(write)
        return 0
    os.close(write)
    os.waitpid(between, 0)
    with os.fdopen(read, "rb") as number:
        return int(number.read())


def _become(order: _Order, descriptors: list[int]) -> None:
    """Set directory, environment and streams, as Python finds them when it starts."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(order.directory)
    os.environ.clear()
    os.environ.update(order.environment)
    sys.argv = [order.module, *order.arguments]
    for stream, given in enumerate(descriptors):
        os.dup2(given, stream)
        os.close(given)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        old = getattr(sys, name)
        is_by_line = name == "stderr" or os.isatty(old.fileno())
        new = open(  # noqa: SIM115 - stays open until the process ends
            old.fileno(), mode, 1 if is_by_line else -1, encoding=old.encoding, errors=old.errors, closefd=False
        )
        setattr(sys, name, new)
        setattr(sys, f"__{name}__", new)


if __name__ == "__main__":
    main(int(sys.argv[1]))
