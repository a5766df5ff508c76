"""Writes docs/configuration.md from the model, and the manual page from the commands: `python -m tests.generate_docs`.

A test holds that both are up to date.
"""

from __future__ import annotations

from poller.config import describe
from tests import man_page
from tests.support import TOP

MAN_PAGE = TOP / "man" / "ionos-poller.1"
PATH = TOP / "docs" / "configuration.md"

_HEAD = """# Configuration

Made from the model by `make docs`; do not edit. `ionos-poller config example` prints all of it as a commented file, `config show`
what is in force, `config schema` a JSON Schema for editors.

Every key can also be set as an environment variable, such as `IONOS_POLLER_POLL__INTERVAL=60s`; the order is command line,
environment, file, default. A secret `x` is given as `x_file`, as `x_env`, by its file name in `$CREDENTIALS_DIRECTORY`, or as
plain `x` in a file that only its owner can read. Durations read `10s`, `5m`, `1h30m`, `7d`; sizes `512KiB`, `1GiB`. Unknown keys
are errors, and all problems are reported at once.
"""


def render() -> str:
    """The whole page."""
    parts = [_HEAD]
    for section in describe.sections():
        parts.append(
            f"## {section.title}\n\n{section.description}\n\n| key | type | default | |\n| --- | --- | --- | --- |"
        )
        parts += [f"| `{row.key}` | {row.type} | {_code(row.default)} | {row.description} |" for row in section.rows]
        parts.append("")
    return "\n".join(parts)


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


def main() -> None:
    PATH.write_text(render())
    MAN_PAGE.parent.mkdir(exist_ok=True)
    MAN_PAGE.write_text(man_page.render())


if __name__ == "__main__":
    main()
