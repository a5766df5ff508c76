"""`check`: the preflight, which prints one line for each check."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import click
import msgspec

from poller.checks import Finding, exit_code_of, fail, from_error, ok
from poller.checks.account import AccountCheck, check_denied, check_local_token, check_unlisted_contracts
from poller.checks.fluent_bit import check_fluent_bit
from poller.checks.sinks import check_sink
from poller.checks.state import check_state
from poller.checks.system import UNIT, check_credentials, check_listen, check_unit, service_environment
from poller.cli.compose import activity_logs
from poller.cli.messages import echo_json, printable
from poller.cli.options import GlobalOptionsCommand, PathType, Settings
from poller.cli.stopping import until_stopped
from poller.config import AnySink, ArchiveSink, Config, find_config
from poller.config.load import SYSTEM_CONFIG
from poller.core.amounts import plural
from poller.core.errors import EXIT_CONFIG, ConfigError, StateError
from poller.core.evidence.batches import Head
from poller.store.opening import stores_of
from poller.store.protocols import Stores

_COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}
_NAME_WIDTH = 18
_SINKS_AT_ONCE = 8


@click.command("check", cls=GlobalOptionsCommand)
@click.option("--offline", is_flag=True, help="Only what can be checked without the network.")
@click.option("--no-send", is_flag=True, help="Do not contact the sinks.")
@click.option(
    "--fluent-bit",
    type=PathType(),
    metavar="FILE",
    help="Also look at this Fluent Bit configuration (classic or YAML).",
)
@click.option("--json", "as_json", is_flag=True, help="For machines.")
@click.pass_obj
def command(settings: Settings, offline: bool, no_send: bool, fluent_bit: Path | None, as_json: bool) -> int:
    """Check the whole set-up: try each part, print one line for it, and say what to do if it is wrong.

    Checks the configuration, the token and until when it is valid, the API, the contracts, the state directory, every sink
    (by a request that is close to sending), the port, and systemd's unit. May run beside the daemon. Changes nothing, but writes
    a probe into an archive, and deletes it if that is allowed.

    Exit code 0: all ok, perhaps with warnings. Otherwise the code of the worst failure: 2 configuration, 3 authentication,
    4 state, 1 any other.

    \b
    Examples:
      ionos-poller check
      ionos-poller check --offline --json
      ionos-poller check --fluent-bit /etc/fluent-bit/fluent-bit.conf
    """

    def work(stop: threading.Event) -> int:
        findings = run_checks(settings, stop, is_offline=offline, is_sending=not no_send, fluent_bit=fluent_bit)
        return show_as_json(findings) if as_json else show(findings)

    return until_stopped(work)


def show(findings: Iterable[Finding]) -> int:
    """Print each finding in one line as it comes, then the totals.  Returns: the exit code."""
    told = []
    for finding in findings:
        told.append(finding)
        level = click.style(f"{finding.level:<4}", fg=_COLOURS[finding.level], bold=finding.level != "ok")
        hint = f" ({finding.hint})" if finding.hint else ""
        click.echo(f"{level}  {_in_columns(finding.name, printable(finding.message + hint))}")
    counts = {level: sum(finding.level == level for finding in told) for level in _COLOURS}
    click.echo(f"{counts['ok']} ok, {counts['warn']} warn, {counts['fail']} fail")
    return exit_code_of(told)


def _in_columns(name: str, text: str) -> str:
    """The line of a finding. On a terminal, the text is wrapped in its column, and begins on a new line if the name is too long.

    Elsewhere it is one line.
    """
    head = f"{name:<{_NAME_WIDTH}}  "
    if not sys.stdout.isatty():
        return head + text
    margin = 4 + 2 + _NAME_WIDTH + 2
    lines = textwrap.wrap(text, max(40, shutil.get_terminal_size().columns - margin), break_on_hyphens=False)
    if len(name) > _NAME_WIDTH:
        lines, head = ["", *lines], name
    return head + f"\n{' ' * margin}".join(lines)


def show_as_json(findings: Iterable[Finding]) -> int:
    """Print one object after all checks.  Returns: the exit code, which is also in the object."""
    told = list(findings)
    code = exit_code_of(told)
    levels = {finding.level for finding in told}
    worst = next((level for level in ("fail", "warn") if level in levels), "ok")
    rows = [
        {name: printable(getattr(finding, name)) for name in ("level", "name", "message", "hint")} for finding in told
    ]
    echo_json({"level": worst, "exit_code": code, "findings": rows})
    return code


def run_checks(
    settings: Settings,
    stop: threading.Event,
    *,
    is_offline: bool = False,
    is_sending: bool = True,
    fluent_bit: Path | None = None,
) -> Iterator[Finding]:
    """Yield each finding as soon as it is known. A failed check does not stop the other checks."""
    problems: set[str] = set()
    config = None
    yield from _see_as_the_service(settings)
    for part in _load(settings):
        if isinstance(part, Config):
            config = part
        else:
            problems.add(f"{part.message} ({part.hint})" if part.hint else part.message)
            yield part
    if config is not None:
        if not problems:
            yield _describe(config)
        for finding in _check_config(config, settings.variables, stop, is_offline=is_offline, is_sending=is_sending):
            # A problem with a key file that loading has reported is not reported again for each use of the file.
            if not any(finding.message in problem for problem in problems):
                yield finding
    if fluent_bit is not None:
        yield from check_fluent_bit(fluent_bit, config)


def _see_as_the_service(settings: Settings) -> Iterator[Finding]:
    """If root checks the system's configuration, use the service's secrets, settings and state."""
    environ = settings.variables
    is_systems = find_config(settings.config, environ) == SYSTEM_CONFIG
    if os.geteuid() != 0 or not is_systems or "CREDENTIALS_DIRECTORY" in environ:
        return
    found = service_environment(environ)
    if found is not None:
        settings.variables = found
        yield ok("service", f"checked as {UNIT} sees it: secrets of {found.get('CREDENTIALS_DIRECTORY', 'none')}")


def _load(settings: Settings) -> Iterator[Finding | Config]:
    """Yield the problems, and the configuration if the other checks can use it."""
    try:
        yield settings.load()
    except ConfigError as error:
        yield from from_error("config", error)
        try:
            yield settings.load(check_files=False)
        except ConfigError:
            yield fail("config", "the rest was not checked", "correct the configuration first", EXIT_CONFIG)


def _describe(config: Config) -> Finding:
    where = str(config.source.absolute()) if config.source else "from the environment alone"
    sinks = plural(len(config.sinks), "sink") if config.sinks else "no sinks: `fetch` needs none, `run` does"
    return ok("config", f"{where}: {sinks}")


def _check_config(
    config: Config, environ: Mapping[str, str], stop: threading.Event, *, is_offline: bool, is_sending: bool
) -> Iterator[Finding]:
    if is_offline:
        for account in config.accounts:
            suffix = "" if len(config.accounts) == 1 else f" {account.name}"
            yield check_local_token(account, f"token{suffix}", time.time())
    else:
        yield from _check_accounts(config, stop)
    stores = stores_of(config)
    yield from check_state(stores, config.outbox.max_bytes)
    if is_sending:
        sinks = [sink for sink in config.sinks if not is_offline or sink.is_local]
        archives = _archives(stores) if any(isinstance(sink, ArchiveSink) for sink in sinks) else {}
        yield from _check_sinks(sinks, config, stop, archives)
    if config.sinks:  # only `run` listens, and it needs a sink
        yield check_listen(config.http.address, _holder(stores))
    yield from check_credentials(environ, config)
    yield from check_unit()


def _archives(stores: Stores) -> Mapping[str, Head]:
    """The newest digest of each archive of `run`, by sink; empty if the state cannot be read, which `check_state` reports."""
    try:
        return stores.snapshot("run").archives
    except StateError:
        return {}


def _holder(stores: Stores) -> int | None:
    """The pid of this machine's daemon; None also if the state cannot be used, which `check_state` reports."""
    try:
        return stores.holder("run")
    except StateError:
        return None


def _check_accounts(config: Config, stop: threading.Event) -> Iterator[Finding]:
    seen: list[str] = []
    clients = []
    checks = []
    is_only = len(config.accounts) == 1
    # No retries: a missing answer is a finding, and a person is waiting for it.
    asked = msgspec.structs.replace(config, api=msgspec.structs.replace(config.api, max_retries=0))
    for account in config.accounts:
        try:
            client = activity_logs(msgspec.structs.replace(asked, accounts=(account,)), stop)[account.name]
        except ConfigError as error:
            yield from from_error("token" if is_only else f"token {account.name}", error)
            continue
        check = AccountCheck(account, client, config.poll, config.api.page_size, is_only=is_only)
        checks.append(check)
        yield from check.run()
        seen += check.contracts or []
        if check.may_read:
            clients.append(client)
    yield from check_denied(checks)
    yield from check_unlisted_contracts(config.poll.contracts, seen, clients, config.api.page_size)


def _check_sinks(
    sinks: list[AnySink], config: Config, stop: threading.Event, archives: Mapping[str, Head]
) -> Iterator[Finding]:
    """Check the sinks in parallel, so that a silent one does not delay the others. Yields in the configuration's order."""
    pool = ThreadPoolExecutor(max_workers=_SINKS_AT_ONCE)
    try:
        check = lambda sink: list(check_sink(sink, config, stop, archives.get(sink.name)))  # noqa: E731
        for findings in pool.map(check, sinks):
            yield from findings
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # after a stop, nobody waits for answers
