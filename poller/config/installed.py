"""How this program was installed, so that the commands in hints work as written."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

from poller.core.errors import ConfigError

NAME = "ionos-poller"


@contextmanager
def needed(extra: str, path: str, message: str, *, instead: str = "") -> Iterator[None]:
    """For a block that imports packages of an extra.  Raises: ConfigError if the extra is not installed."""
    try:
        yield
    except ImportError as error:
        raise ConfigError.of(path, message, how_to_add(extra) + instead) from error


def how_to_add(extra: str) -> str:
    """The command that adds an extra to this installation."""
    wanted = shlex.quote(f"{source()}[{extra}]")
    prefix = Path(sys.prefix)
    if (prefix / "pipx_metadata.json").exists():
        return f"pipx runpip {NAME} install {wanted}"
    if (prefix / "uv-receipt.toml").exists():
        return f"uv pip install --python {shlex.quote(sys.prefix)} {wanted}"
    return f"pip install {wanted}"


@cache
def source() -> str:
    """The argument for pip: the checkout or file that the program was installed from, if it still exists, otherwise its name."""
    from importlib.metadata import PackageNotFoundError, distribution

    try:
        told = distribution(NAME).read_text("direct_url.json")
    except PackageNotFoundError:
        told = None
    found = json.loads(told or "{}")
    url = urlsplit(found.get("url", ""))
    path = unquote(url.path)
    if url.scheme != "file" or found.get("dir_info", {}).get("editable") or not Path(path).exists():
        return NAME
    return path
