"""Writes docs/configuration.md from the model, docs/mappings.md from the tables of the formats, and the manual page from the
commands: `python -m tests.generate_docs`.

A test holds that all are up to date.
"""

from __future__ import annotations

import json

from poller.config import describe
from poller.core.mapping.ecs import ECS
from poller.core.mapping.ecs import VERSION as ECS_VERSION
from poller.core.mapping.ocsf import API_ACTIVITY, AUTHENTICATION, OCSF
from poller.core.mapping.ocsf import VERSION as OCSF_VERSION
from poller.core.mapping.table import Row
from tests import man_page
from tests.support import TOP

MAN_PAGE = TOP / "man" / "ionos-poller.1"
PATH = TOP / "docs" / "configuration.md"

MAPPINGS = TOP / "docs" / "mappings.md"

_HEAD = """# Configuration

Made from the model by `make docs`; do not edit. `ionos-poller config example` prints all of it as a commented file, `config show`
what is in effect, `config schema` a JSON Schema for editors.

- A key is taken from the command line, else the environment, else the file, else its default.
- The variable of a key is its path: `IONOS_POLLER_POLL__INTERVAL=60s`. Elements of a list are counted from 0
  (`IONOS_POLLER_POLL__CONTRACTS__0=31960001`), or write the whole list as JSON. An empty variable counts as not set; `""` is an
  empty text: `IONOS_POLLER_HTTP__LISTEN='""'`.
- A `secret` named `x` is given as `x_file`, as `x_env`, by its file name in `$CREDENTIALS_DIRECTORY`, or as plain `x` in a file
  that only its owner can read.
- Durations: `10s`, `5m`, `1h30m`, `7d`. Sizes: `512KiB`, `1GiB`.
- Unknown keys are errors. All problems are reported at once, with file and line.
"""


def render() -> str:
    """The whole page."""
    parts = [_HEAD]
    for section in describe.sections():
        parts.append(f"## {section.title}\n\n{section.description}\n")
        parts += ["| key | type | default | |\n| --- | --- | --- | --- |"] if section.rows else []
        parts += [f"| `{row.key}` | {row.type} | {_code(row.default)} | {row.description} |" for row in section.rows]
        parts += [""] if section.rows else []
    return "\n".join(parts)


_MAPPINGS_HEAD = f"""# OCSF and ECS

Made from the tables of the program by `make docs`; do not edit.

`format = "ocsf"` or `"ecs"` in a sink's table, `fetch --format ocsf` and `backfill --format ocsf --output FILE` make an event of
OCSF {OCSF_VERSION} or ECS {ECS_VERSION} of each entry:

- The entry is inside, to the byte: in `raw_data` (OCSF) or `event.original` (ECS).
- A field without a value is left out. What has no field in the standard is below `unmapped` (OCSF) or `ionos.activitylog` (ECS),
  with the names that the API gives it.
- `[redact]` and `[filter]` work on the entry, before the event is made.
- An event has two to three and a half times the bytes of its entry. `max_event_bytes` of a sink is about the entry, except where
  the receiver has a limit of its own ([firehose.md](firehose.md)).

OCSF events have the profiles `cloud` and `datetime`. `tests/property/test_formats.py` validates them against the schema of OCSF
{OCSF_VERSION}, and the ECS fields against the standard's own list, on entries that are changed at random.
"""


def render_mappings() -> str:
    """The page of the formats. The second class of OCSF is shown only where it differs from the first one."""
    activity, authentication = OCSF.tables[API_ACTIVITY], OCSF.tables[AUTHENTICATION]
    shown = {_line(row) for row in activity}
    left_out = {row.field for row in activity} - {row.field for row in authentication}
    less = f", without {', '.join(f'`{name}`' for name in sorted(left_out))}" if left_out else ""
    return "\n".join(
        [
            _MAPPINGS_HEAD,
            *_table(
                f"OCSF {OCSF_VERSION}: API Activity ({API_ACTIVITY})", [_line(row) for row in activity], "unmapped"
            ),
            f"## OCSF {OCSF_VERSION}: Authentication ({AUTHENTICATION}), of GenerateToken\n",
            f"As API Activity{less}, and with these:\n",
            "| field | value |\n| --- | --- |",
            *(line for line in map(_line, authentication) if line not in shown),
            "",
            *_table(f"ECS {ECS_VERSION}", [_line(row) for row in ECS.tables[0]], "ionos.activitylog.unmapped"),
        ]
    )


def _table(title: str, lines: list[str], rest: str) -> list[str]:
    last = f"| `{rest}.*` | all else, with the nesting, the names and the values of the entry |\n"
    return [f"## {title}\n\n| field | value |\n| --- | --- |", *lines, last]


def _line(row: Row) -> str:
    return f"| `{row.field}` | {_value(row)} |"


def _value(row: Row) -> str:
    if row.fact:
        return row.source
    constant = f"`{json.dumps(row.constant)}`"
    return f"{constant}: {row.source}" if row.source else constant


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


def main() -> None:
    PATH.write_text(render())
    MAPPINGS.write_text(render_mappings())
    MAN_PAGE.parent.mkdir(exist_ok=True)
    MAN_PAGE.write_text(man_page.render())


if __name__ == "__main__":
    main()
