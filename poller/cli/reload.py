"""`reload`: tell the running daemon to load its configuration again, and report the result."""

from __future__ import annotations

import os
import platform
import re
import signal
import threading
import time
from contextlib import closing
from pathlib import Path

import click

from poller.cli.messages import tell
from poller.cli.options import GlobalOptionsCommand, Settings
from poller.cli.stopping import until_stopped
from poller.core.errors import EXIT_INCOMPLETE, EXIT_OK, ConfigError, StateError
from poller.pipeline.reloads import Reload, last_reload
from poller.store.opening import stores_of
from poller.store.protocols import State

_OUTCOME_SECONDS = 30.0  # the daemon finishes a batch in flight first
_LOOK_AGAIN_SECONDS = 0.1


@click.command("reload", cls=GlobalOptionsCommand)
@click.argument("pid", type=click.IntRange(2), required=False, metavar="[PID]")
@click.pass_obj
def command(settings: Settings, pid: int | None) -> int:
    """Tell `run` to load its configuration again, and report the result. Default PID: the process that holds the state;
    if several replicas share it on this machine, name one.

    Exit code 1: it kept the old one; 2: the configuration is wrong. `systemctl reload ionos-poller` runs this. Secrets that
    come through LoadCredential= of systemd need a restart instead.

    \b
    Example:
      ionos-poller reload
    """
    try:
        stores = stores_of(settings.load(check_files=False))
    except ConfigError:
        if pid is not None:
            _signal(pid)  # the daemon also logs what is wrong
        raise
    process = pid or stores.holder("run")
    if process is None:
        hint = "start it: it loads the configuration at its start; if it runs with another state_dir, restart it"
        raise StateError(f"`run` is not running with the state in {stores.place}", hint=hint)
    if pid is None and not _handles_reloads(process):
        hint = "wait until it ends; `run` loads the configuration at its start"
        raise StateError(f"process {process} uses the state in {stores.place}, and is another command", hint=hint)

    def work(stop: threading.Event) -> int:
        with closing(stores.attach("run")) as state:
            if pid is None:
                _ensure_alone(state)
            before = last_reload(state)
            _signal(process)
            return _outcome(state, process, before, stop)

    return until_stopped(work)


def _ensure_alone(state: State) -> None:
    """Raises: ConfigError if several replicas run on this machine: each has its own configuration."""
    here = [str(replica.pid) for replica in state.overview().replicas if replica.host == platform.node()]
    if len(here) > 1:
        hint = "name one of them, or use `systemctl reload`"
        raise ConfigError.of("PID", f"several replicas work on this machine: {', '.join(here)}", hint)


def _handles_reloads(pid: int) -> bool:
    """Whether a process handles SIGHUP, as `run` does. The signal would end another command, such as a repair."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:  # not Linux, or the process has ended
        return True
    caught = re.search(r"^SigCgt:\s*([0-9a-f]+)", status, re.MULTILINE)
    return caught is None or bool(int(caught[1], 16) >> (signal.SIGHUP - 1) & 1)


def _signal(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGHUP)
    except OSError as error:
        hint = "run it as root, or as the user of the service"
        raise ConfigError.of("PID", f"process {pid} cannot be asked: {error.strerror}", hint) from error


def _outcome(state: State, pid: int, before: Reload | None, stop: threading.Event) -> int:
    deadline = time.monotonic() + _OUTCOME_SECONDS
    while time.monotonic() < deadline and not stop.wait(_LOOK_AGAIN_SECONDS):
        found = last_reload(state)
        if found is None or found == before or found.pid != pid:
            continue
        if not found.failure:
            click.echo("reloaded")
            return EXIT_OK
        tell(f"not reloaded, the old configuration stays in force: {found.failure}")
        return EXIT_INCOMPLETE
    tell(f"process {pid} did not say within {_OUTCOME_SECONDS:.0f} s whether it reloaded (its log says more)")
    return EXIT_INCOMPLETE
