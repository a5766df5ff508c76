"""Write every generated file: `python -m grafana`."""

from __future__ import annotations

from pathlib import Path

from grafana import activity, alerts, health
from grafana.parts import as_json

HERE = Path(__file__).resolve().parent


def files() -> dict[str, str]:
    """File name -> text, for every generated file."""
    return {
        "activity.json": as_json(activity.dashboard()),
        "poller.json": as_json(health.dashboard()),
        "alerts-grafana.yaml": alerts.for_grafana(),
        "alerts-loki.yaml": alerts.for_ruler("loki"),
        "alerts-prometheus.yaml": alerts.for_ruler("prometheus"),
    }


if __name__ == "__main__":
    for name, text in files().items():
        (HERE / name).write_text(text, encoding="utf-8")
