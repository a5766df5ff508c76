"""The Activity Log API and a set of intakes on loopback, with faults on request. `simulate` and `demo`
run it, and tests use it.

    with Simulator(SimulatorSettings(contracts=2, events=12_000, span_seconds=7200)) as simulator:
        ...  # point IONOS_API_URL to simulator.url, and a sink to simulator.url + "/sink/logging"
        assert simulator.books("logging").lost == 0

Must not import anything of the product but its errors: otherwise it could share the product's mistakes.
"""

from __future__ import annotations

from poller.simulator.faults import parse_faults
from poller.simulator.settings import SimulatorSettings
from poller.simulator.simulator import Simulator

__all__ = ["Simulator", "SimulatorSettings", "parse_faults"]
