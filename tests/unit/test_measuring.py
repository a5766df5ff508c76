"""A test that coverage does not measure runs as fast as without coverage."""

from __future__ import annotations

import sys
import threading

import pytest


@pytest.mark.no_cover
def test_a_test_that_is_not_measured_has_no_tracer_nor_have_its_threads():
    tracers = [sys.gettrace()]
    thread = threading.Thread(target=lambda: tracers.append(sys.gettrace()))
    thread.start()
    thread.join()
    assert tracers == [None, None]
