"""Which tests coverage measures, with the processes that they start.

The others run as fast as without coverage. The measured tests cover the same code, except one or two lines in a thousand.
"""

from __future__ import annotations

import os
import sys
from functools import cache

import pytest

from tests.support import MEASURING

MEASURED = (
    "tests/unit/",
    "tests/integration/test_archive.py",
    "tests/integration/test_audit.py",
    "tests/integration/test_backfill.py",
    "tests/integration/test_check.py",
    "tests/integration/test_cli.py",
    "tests/integration/test_cluster_page.py",
    "tests/integration/test_documentation.py",
    "tests/integration/test_fetch_errors.py",
    "tests/integration/test_filter_redact.py",
    "tests/integration/test_formats.py",
    "tests/integration/test_gaps.py",
    "tests/integration/test_journal.py",
    "tests/integration/test_kafka.py",
    "tests/integration/test_mended.py",
    "tests/integration/test_otlp.py",
    "tests/integration/test_planted_files.py",
    "tests/integration/test_pooler.py",
    "tests/integration/test_setup.py",
    "tests/integration/test_setup_kafka.py",
    "tests/integration/test_simulator.py",
    "tests/integration/test_status.py",
    "tests/integration/test_tail.py",
)
# Exceptions from MEASURED: slow tests that reach almost no code that the others do not reach.
NOT_MEASURED = (
    "tests/integration/test_archive.py::test_a_million_entries",
    "tests/integration/test_backfill.py::test_a_year_of_uneven_entries",
    "tests/unit/test_docs.py",
    "tests/unit/test_formats.py::test_every_entry_of_the_simulator",
    "tests/unit/test_gap_trials.py",
    "tests/unit/test_layers.py",
    "tests/unit/test_scale.py",
    "tests/unit/test_stdout_half_lines.py",
)


def is_measured(item: pytest.Item) -> bool:
    return item.nodeid.startswith(MEASURED) and not item.nodeid.startswith(NOT_MEASURED)


def leave_out(items: list[pytest.Item]) -> None:
    """Make pytest-cov pause during the tests that are not measured."""
    for item in items:
        if not is_measured(item):
            item.add_marker(pytest.mark.no_cover)


def begin_workers_unmeasured() -> None:
    """Start Python without coverage in a worker. pytest-cov starts its own coverage there, and can pause only that."""
    os.environ.pop(MEASURING, None)


def stop_first(config: pytest.Config) -> None:
    """In a worker: stop the coverage that pytest-cov starts as in the main process, and loses when it starts again."""
    controller = getattr(config.pluginmanager.get_plugin("_cov"), "cov_controller", None)
    if controller is not None and hasattr(config, "workerinput"):
        controller.cov.stop()


def tell_processes(item: pytest.Item) -> None:
    """Set whether the processes that this test starts are measured. Without coverage, none is."""
    if configuration := _given():
        os.environ[MEASURING] = configuration if is_measured(item) else ""


def forget_unmeasured(item: pytest.Item) -> None:
    """Empty the core's caches after a test that is not measured, so that measured tests do not find results in them."""
    if not _given() or is_measured(item):
        return
    for module in [module for name, module in sys.modules.items() if name.startswith("poller.core.")]:
        for member in vars(module).values():
            if hasattr(member, "cache_clear"):
                member.cache_clear()


@cache
def _given() -> str:
    """The variable that coverage set in the environment before the first test."""
    return os.environ.get(MEASURING, "")
