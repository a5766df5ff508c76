"""`run`: the daemon."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable

import click

from poller.cli.acting import acting
from poller.cli.compose import activity_logs, preparation, token_expiries, trusted_clock
from poller.cli.messages import restarted_if_it_may_pass
from poller.cli.options import PAST, GlobalOptionsCommand, Settings
from poller.cli.stopping import end_soon_after_a_signal
from poller.config import Config, process_environment
from poller.core.errors import ConfigError, StateUnavailableError
from poller.core.windows import format_time
from poller.service.components import Components
from poller.service.daemon import Daemon
from poller.service.notify import Notifier
from poller.sinks.build import build_sink
from poller.sinks.redaction import redactions_of
from poller.store.opening import stores_of

log = logging.getLogger(__name__)

# Longer than a batch in flight may take (`schedule.DRAIN_SECONDS`), shorter than service managers wait.
_END_SECONDS = 9.5
_AWAY_SECONDS = 3.0  # between attempts to start while the database is unavailable


@click.command("run", cls=GlobalOptionsCommand)
@click.option("--since", type=PAST, metavar="T", help="Read again from T; what was already collected is not repeated.")
@click.pass_obj
def command(settings: Settings, since: int | None) -> int:
    """The daemon: polls every contract on a schedule and delivers to every sink, until SIGTERM.

    SIGHUP reloads the configuration and the secrets; a bad one is reported and the old one stays in use.

    \b
    Examples:
      ionos-poller --config /etc/ionos-poller/config.toml run
      curl -s localhost:9464/readyz      ready or not, and why
    """
    end_soon_after_a_signal(_END_SECONDS)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until the daemon loads the configuration and handles it
    while True:
        with restarted_if_it_may_pass():
            config = _load(settings)
        try:
            with restarted_if_it_may_pass():
                return _run(settings, config, since)
        except StateUnavailableError as error:
            if not config.state.url:
                raise  # the state is on a local disk: the service manager restarts the daemon
            log.error("state.unavailable", extra={"why": error.message, "hint": error.hint})
            time.sleep(_AWAY_SECONDS)  # a signal ends the process meanwhile


def _run(settings: Settings, config: Config, since: int | None) -> int:
    accounts = [account.name for account in config.accounts]
    stores = stores_of(config)
    with acting(stores, "run --since", "" if since is None else format_time(since)) as by:
        state = stores.open("run", since=since, accounts=accounts, by=by)

    def build(stop: threading.Event, observe: Callable[[str, float], None], before: Config | None) -> Components:
        current = before or _load(settings)
        accounts = activity_logs(current, stop, observe)
        now = trusted_clock(accounts)
        return Components(
            current,
            stop,
            accounts,
            [
                build_sink(sink, current, stop, trusted_now=now)
                for sink in current.sinks
                if sink.is_here(os.uname().nodename)
            ],
            lambda: token_expiries(current),
            preparation(current),
            redactions_of(current.sinks, current),
        )

    try:
        return Daemon(state, build, Notifier(process_environment().get("NOTIFY_SOCKET"))).run()
    finally:
        state.close()


def _load(settings: Settings) -> Config:
    config = settings.load()
    if not config.sinks:
        hint = "add one, such as the [[sinks]] of `ionos-poller config example`; `fetch` needs none"
        raise ConfigError.of("sinks", "nowhere to deliver to", hint)
    return config
