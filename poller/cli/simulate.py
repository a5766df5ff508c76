"""`simulate`: only the simulator, for trying configurations."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

import click

from poller.cli.options import DURATION, GlobalOptionsCommand, PathType, Settings
from poller.cli.stopping import until_stopped
from poller.core.errors import EXIT_OK, ConfigError
from poller.simulator import Simulator, SimulatorSettings
from poller.system.files import NewFile

_CONFIG = """\
# The simulator of `ionos-poller simulate` as the API, and where its entries go: to its Logging Service, and into a file.
[api]
url = "{url}"
token = "{token}"

[poll]
interval = "5s"
initial_lookback = "2h"

[[sinks]]
name = "logging"
type = "logging-service"
url = "{url}/sink/logging"
tag = "activityLog"
api_key = "{api_key}"

[[sinks]]
name = "file"
type = "file"
path = "activity-{{date}}.ndjson"
"""


@click.command("simulate", cls=GlobalOptionsCommand)
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="0: any free one.")
@click.option("--contracts", type=click.IntRange(0, 100_000), default=2, show_default=True, help="How many contracts.")
@click.option("--events", type=click.IntRange(0), default=1000, show_default=True, help="Entries of each contract.")
@click.option(
    "--span", type=DURATION, default="1h", show_default=True, help="Time over which they are spread, up to now."
)
@click.option(
    "--rate",
    type=click.FloatRange(0, 10_000),
    default=0.0,
    show_default=True,
    help="New entries per second and contract.",
)
@click.option("--seed", type=int, default=1, show_default=True, help="The same seed makes the same entries.")
@click.option("--fault", "faults", multiple=True, metavar="SPEC", help="What goes wrong (repeatable); see above.")
@click.option(
    "--write-config",
    type=PathType(),
    metavar="FILE",
    help="Write a configuration for it, ready to `run`. FILE must not exist yet.",
)
@click.pass_obj
def command(
    settings: Settings,
    port: int,
    contracts: int,
    events: int,
    span: float,
    rate: float,
    seed: int,
    faults: tuple[str, ...],
    write_config: Path | None,
) -> int:
    """Serve the Activity Log API and a few intakes on loopback, until interrupted.

    \b
    Besides the API, below the address that it prints:
      /sink/logging     a Logging Service pipeline; its key is demo-key
      /sink/loki        a Loki
      /sink/moesif      Moesif; its application id is demo-app
      /sink/opensearch  OpenSearch
      /sink/otlp        OpenTelemetry (OTLP)
      /sink/http        accepts everything
      /pipelines        the Logging Service's own API: `setup --api-url ADDRESS`

    \b
    A fault has the form [SELECTOR:]KIND[:OPTION]..., for example
      500:10%                      every tenth API request answers 500
      429:10%:retry-after=2        with a Retry-After header
      contract=31960002:500        every page of one contract
      late:5%:3s                   5% of the entries show up 3 s late
      mixed:10%                    every kind of failure, evenly
      sink=logging:lost-ack:30%    an intake stores, then drops the connection

    \b
    Examples:
      ionos-poller simulate --contracts 2 --events 12000 --span 2h
      ionos-poller simulate --port 0 --rate 2 --fault 429:10% --fault late:5%:3s
      ionos-poller simulate --rate 1 --write-config ionos-poller.toml
    """
    if write_config is not None and os.path.lexists(write_config):
        raise ConfigError.of(
            "--write-config", f"{write_config} is there already", "leave the option out, or name another file"
        )
    wanted = SimulatorSettings(
        contracts=contracts,
        events=events,
        span_seconds=span,
        live_per_second=rate,
        seed=seed,
        port=port,
        faults=faults,
    )

    def work(stop: threading.Event) -> int:
        with Simulator(wanted) as simulator:
            if write_config is not None:
                _write(write_config, simulator)
            numbers = [str(contract) for contract in simulator.contracts]
            told = ", ".join(numbers[:5]) + (f" to {numbers[-1]}" if len(numbers) > 5 else "")  # consecutive
            click.echo(f"{simulator.url}  token: {simulator.token}  contracts: {told}")
            sys.stdout.flush()
            stop.wait()
        return EXIT_OK

    try:
        return until_stopped(work)
    except OSError as error:
        raise ConfigError.of("--port", f"{port}: {error.strerror}", "choose another --port, or 0 for any") from error


def _write(path: Path, simulator: Simulator) -> None:
    """Write the configuration. Only its owner can read it, because it holds secrets."""
    values = {"url": simulator.url, "token": simulator.token, "api_key": simulator.settings.api_key}
    with NewFile(path) as file:
        file.write(_CONFIG.format(**values).encode())
        file.commit()
