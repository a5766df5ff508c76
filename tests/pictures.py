"""`make pictures`: the pictures of the documentation, made of the real program at work. `ARGS="--minutes 60"`: for an hour.

The demo, `status` and `tail` run on a terminal of 80 columns and are drawn as SVG. The page is the page of a daemon that has
collected from a simulator for some minutes, in a headless Chromium. The drawing of where entries flow is made from the list of
sink types.
"""

from __future__ import annotations

import argparse
import base64
import json
import math
import os
import random
import re
import tempfile
import time
from html import escape
from pathlib import Path
from typing import get_args

from rich.console import Console
from rich.terminal_theme import TerminalTheme
from rich.text import Text

from poller.config import AnySink
from poller.simulator import Simulator, SimulatorSettings
from tests.browser import browser
from tests.daemon import Daemon
from tests.support import COMMAND, TOP, clean_environment, wait_until
from tests.terminal import COLUMNS, Terminal

PICTURES = TOP / "docs" / "pictures"
LOOKBACK_HOURS = 20
TOKEN_DAYS = 74
# Colours of a terminal, on a dark background; readable on light and dark pages.
_COLOURS = ["ff8c82", "6fd3a6", "f0c070", "6aa9e8", "c8a0e8", "6fd3c6"]  # red, green, yellow, blue, magenta, cyan


def _rgb(colour: str) -> tuple[int, int, int]:
    red, green, blue = bytes.fromhex(colour)
    return red, green, blue


THEME = TerminalTheme(
    _rgb("151b22"),
    _rgb("dee5ec"),
    [_rgb(colour) for colour in ("5a6672", *_COLOURS, "dee5ec")],
    [_rgb(colour) for colour in ("8c98a4", *_COLOURS, "ffffff")],
)


class Show(Daemon):
    """A daemon with a typical set-up: a Logging Service and an archive."""

    def configure(self, **_: object) -> None:
        self.config_file.write_text(
            f"""
            state_dir = "{self.state_dir}"
            [api]
            url = "{self.simulator.url}"
            token_file = "{self.token_file}"
            [poll]
            interval = "5s"
            initial_lookback = "{LOOKBACK_HOURS}h"
            audit_interval = "1m"
            [http]
            listen = "127.0.0.1:{self.port}"
            [[sinks]]
            name = "logging"
            type = "logging-service"
            url = "{self.simulator.url}/sink/logging"
            tag = "activityLog"
            api_key_file = "{self.key_file}"
            [[sinks]]
            name = "grafana"
            type = "loki"
            url = "{self.simulator.url}/sink/loki"
            [[sinks]]
            name = "archive"
            type = "file"
            path = "{self.directory}/activity-{{date}}.ndjson"
            """
        )


def main() -> None:
    arguments = argparse.ArgumentParser(prog="make pictures", description=__doc__.splitlines()[0])
    arguments.add_argument(
        "--minutes", type=float, default=2, help="how long the daemon collects before it is looked at"
    )
    arguments.add_argument("--only", choices=["flow"], help="only this one")
    chosen = arguments.parse_args()
    PICTURES.mkdir(exist_ok=True)
    (PICTURES / "flow.svg").write_text(flow())
    if chosen.only is None:
        take_pictures(chosen.minutes)


def take_pictures(minutes: float) -> None:
    os.umask(0o077)  # only this user may read the secrets
    with (
        tempfile.TemporaryDirectory(prefix="activity-") as name,
        Simulator(_settings()) as simulator,
    ):
        directory = Path(name)
        draw("demo", ["demo"], directory)
        daemon = Show(directory, simulator)
        try:
            daemon.start()
            wait_until(lambda: not daemon.troubles(), 60, what="the daemon is ready")
            # Restart, so that the many entries of the first minutes do not distort the chart of entries per minute.
            daemon.stop()
            daemon.start()
            live(simulator, minutes * 60)
            wait_until(lambda: "compared" in json.dumps(daemon.state()), 120, what="an audit has compared hours")
            config = ["--config", str(daemon.config_file)]
            draw("status", [*config, "status"], directory)
            draw("tail", [*config, "tail", "--once", "--since", "3m"], directory, rows=16)
            photograph(f"http://127.0.0.1:{daemon.port}/")
        finally:
            daemon.close()


def _settings() -> SimulatorSettings:
    payload = base64.urlsafe_b64encode(json.dumps({"exp": int(time.time()) + TOKEN_DAYS * 86_400}).encode()).decode()
    return SimulatorSettings(
        contracts=2, events=4000, span_seconds=LOOKBACK_HOURS * 3600, token=f"e30.{payload.rstrip('=')}.demo"
    )


def live(simulator: Simulator, seconds: float) -> None:
    """Add entries at a changing rate, as people work."""
    dice, end = random.Random(7), time.monotonic() + seconds
    while time.monotonic() < end:
        busy = 1.2 + math.sin(time.monotonic() / 400) * 0.8
        for contract in simulator.contracts:
            simulator.add_entries(contract, count=min(9, int(dice.expovariate(1 / (busy * 2)))))
        time.sleep(dice.uniform(2, 9))


def draw(name: str, arguments: list[str], directory: Path, *, rows: int = 0) -> None:
    """Draw the output of a command on a terminal as SVG. Only the last `rows` rows are shown, if `rows` is given."""
    terminal = Terminal([*COMMAND, *arguments], directory, clean_environment({"COLORTERM": "truecolor"}))
    assert terminal.wait(60) == 0, terminal.raw
    lines = terminal.raw.replace("\r", "").rstrip("\n").split("\n")
    shown = Text.from_ansi("\n".join(lines[-rows:]))
    console = Console(record=True, width=COLUMNS, file=(directory / "drawn").open("w"), force_terminal=True)
    console.print(Text.assemble(("$ ", "dim"), (f"ionos-poller {_typed(arguments)}", "bold")))
    console.print(shown, soft_wrap=True)
    svg = console.export_svg(title="", theme=THEME, unique_id=name)
    svg = re.sub(r"\s*@font-face \{.*?\}", "", svg, flags=re.DOTALL)  # the font would be loaded from another server
    svg = svg.replace("Fira Code", "ui-monospace, SFMono-Regular, Menlo, Consolas, DejaVu Sans Mono")
    (PICTURES / f"{name}.svg").write_text("\n".join(line.rstrip() for line in svg.splitlines()) + "\n")


def _typed(arguments: list[str]) -> str:
    """The command as a person types it, without `--config`: the configuration is in its default place."""
    return " ".join(arguments[2:] if arguments[0] == "--config" else arguments)


def photograph(url: str) -> None:
    """Take a picture of the page in light and in dark mode."""
    with browser() as page:
        page.open(url)
        for scheme in ("light", "dark"):
            page.look(1280, is_dark=scheme == "dark")
            page.run("document.fonts.ready.then(() => 0)")
            (PICTURES / f"page-{scheme}.png").write_bytes(page.picture())


# The drawing

_STYLE = """
text { font: 15px system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; fill: #17212b; }
.soft { fill: #55626f; font-size: 13px; }
.strong { font-weight: 600; font-size: 16px; }
.box { fill: #ffffff; stroke: #c9d2db; }
.ours { fill: #e3f4f1; stroke: #0b7a6f; }
.line { stroke: #55626f; fill: none; stroke-width: 1.5; }
.head { fill: #55626f; }
@media (prefers-color-scheme: dark) {
  text { fill: #e7edf3; }
  .soft, .head { fill: #9fadbb; }
  .box { fill: #182029; stroke: #3a4855; }
  .ours { fill: #11302d; stroke: #2fae9f; }
  .line { stroke: #9fadbb; }
}
"""
_API = ["Activity Log API,", "contract by contract"]
_OURS = [
    "reads each window whole, or splits it",
    "one transaction: new entries, watermark",
    "outbox: waits until every sink has it",
    "audits itself by the API's own counts",
]
_NAMES = {
    "logging-service": "IONOS Logging Service",
    "loki": "Grafana Loki",
    "file": "files (NDJSON)",
    "stdout": "stdout, for Fluent Bit",
    "moesif": "Moesif",
    "firehose": "AWS Data Firehose",
    "opensearch": "OpenSearch",
    "elasticsearch": "Elasticsearch",
    "otlp": "OpenTelemetry (OTLP)",
    "kafka": "Apache Kafka",
    "http": "any HTTP intake",
    "archive": "archive with proof (S3, disk)",
}


def flow() -> str:
    """Where entries flow: from the API through the state to each kind of sink."""
    names = [_NAMES.get(tag, tag) for tag in (table.__struct_config__.tag for table in get_args(AnySink))]
    step, top = 36, 24
    height = max(300, len(names) * step + 2 * top)
    middle = height / 2
    first = middle - (len(names) - 1) * step / 2
    sinks = "".join(
        f'<rect class="box" x="660" y="{first + at * step - 14:.0f}" width="236" height="28" rx="6"/>'
        f'<text x="674" y="{first + at * step + 5:.0f}">{escape(name)}</text>'
        f'<path class="line" d="M580 {middle:.0f}C625 {middle:.0f} 610 {first + at * step:.0f} 650 {first + at * step:.0f}"/>'
        f'<path class="head" d="M650 {first + at * step - 5:.0f}l9 5l-9 5z"/>'
        for at, name in enumerate(names)
    )

    def box(x: int, width: int, title: str, lines: list[str], style: str) -> str:
        tall = 48 + 21 * len(lines)
        y = middle - tall / 2
        texts = "".join(
            f'<text class="soft" x="{x + 16}" y="{y + 53 + 21 * at:.0f}">{escape(line)}</text>'
            for at, line in enumerate(lines)
        )
        return (
            f'<rect class="{style}" x="{x}" y="{y:.0f}" width="{width}" height="{tall}" rx="10"/>'
            f'<text class="strong" x="{x + 16}" y="{y + 30:.0f}">{escape(title)}</text>{texts}'
        )

    def arrow(start: int, end: int, label: str) -> str:
        return (
            f'<path class="line" d="M{start} {middle:.0f}H{end - 9}"/>'
            f'<path class="head" d="M{end - 9} {middle - 5:.0f}l9 5l-9 5z"/>'
            f'<text class="soft" x="{(start + end) / 2:.0f}" y="{middle - 10:.0f}" text-anchor="middle">{label}</text>'
        )

    head = f'xmlns="http://www.w3.org/2000/svg" viewBox="0 0 910 {height}" width="910" height="{height}"'
    return f"""<svg {head} role="img" aria-labelledby="t">
<title id="t">Where entries flow: from the Activity Log API, through ionos-poller and its state, to every sink</title>
<style>{_STYLE}</style>
{box(14, 170, "IONOS Cloud", _API, "box")}
{arrow(184, 270, "windows")}
{box(270, 310, "ionos-poller", _OURS, "ours")}
{sinks}
</svg>
"""


if __name__ == "__main__":
    main()
