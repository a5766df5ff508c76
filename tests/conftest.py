"""Rules for every test: no setting from outside, no process left behind, longest tests first. A run without tests fails."""

from __future__ import annotations

import gc
import logging
import os
import signal
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from tests import measuring, order
from tests.commands import start_command
from tests.postgres import Server
from tests.support import is_foreign_setting, take_interrupts

# Hypothesis has a profile `ci` with the same examples in every run. No deadline here: a busy machine is not a bug.
settings.register_profile("local", deadline=None)
# For the long run by hand, `make fuzz`: two hundred times as many examples, different ones in each run.
settings.register_profile("fuzz", deadline=None, max_examples=20_000, suppress_health_check=list(HealthCheck))
settings.load_profile("ci" if os.environ.get("CI") else "local")

take_interrupts()
os.umask(0o077)  # a key file that others can read is refused


@pytest.fixture(autouse=True)
def clean_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the developer's token, proxy and config out of the environment of in-process tests."""
    for name in list(os.environ):
        if is_foreign_setting(name):
            monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def restored_logging() -> Iterator[None]:
    """Restore the logging set-up: a command that runs in this process changes it."""
    loggers = [logging.getLogger(), logging.getLogger("poller")]
    before = [(logger, logger.level, logger.handlers[:]) for logger in loggers]
    yield
    for logger, level, handlers in before:
        logger.setLevel(level)
        logger.handlers[:] = handlers


@pytest.fixture(autouse=True)
def unwatched_signals() -> Iterator[None]:
    """Restore signals to wake no thread. Otherwise `run` in this process ends it soon after the next SIGTERM of any test."""
    yield
    signal.set_wakeup_fd(-1)


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """`commands.start_command`, which kills and reaps all its processes when the test is over."""
    processes: list[subprocess.Popen[str]] = []

    def start_and_remember(*args: str, **options: Any) -> subprocess.Popen[str]:
        process = start_command(*args, **options)
        processes.append(process)
        return process

    yield start_and_remember
    for process in processes:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                stream.close()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--record-durations", action="store_true", help="keep what each test took, for the order of the next run"
    )
    parser.addoption("--quick", action="store_true", help="leave out the fault harness and what takes a second or more")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("quick"):
        config.hook.pytest_deselected(items=order.take_long(items, order.recorded()))
    order.arrange(items, order.recorded())
    measuring.leave_out(items)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Exclude the collected tests from later garbage collections: they are many, and stay.

    Under mutmut, forget the names of parameters: its next session would escape them again, and not find the tests.
    """
    gc.collect()
    gc.freeze()
    if "MUTANT_UNDER_TEST" in os.environ:
        for mark in (mark for item in session.items for mark in item.iter_markers("parametrize")):
            if mark._param_ids_from is not None:
                object.__setattr__(mark._param_ids_from, "_param_ids_generated", None)


def pytest_xdist_setupnodes() -> None:
    measuring.begin_workers_unmeasured()


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    measuring.stop_first(session.config)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> order.Units | None:
    return order.Units(config, log) if config.getoption("dist") == "loadscope" else None


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    measuring.tell_processes(item)


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    measuring.forget_unmeasured(item)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Server]:
    """A PostgreSQL server, for all tests of this process."""
    server = Server()
    try:
        server.create()
        server.start()
        yield server
    finally:
        server.remove()


@pytest.fixture(scope="session")
def postgres_stores(postgres_server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The states in one schema of that server. Each test opens a use of its own."""
    from poller.config import load
    from poller.store.postgres import Stores

    directory = tmp_path_factory.mktemp("exports")
    stores = Stores(load(None, {"IONOS_POLLER_STATE__URL": postgres_server.url()}, state_dir=directory))
    yield stores
    stores.close()


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Let a run in which every test was skipped fail, like a run without tests."""
    if exitstatus != pytest.ExitCode.OK or session.config.option.collectonly:
        return
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None and not reporter.stats.get("passed"):
        session.exitstatus = pytest.ExitCode.NO_TESTS_COLLECTED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if not config.option.record_durations:
        return
    took: Counter[str] = Counter()
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                took[report.nodeid] += report.duration
    order.record(took)
