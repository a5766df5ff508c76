"""One load of the configuration: its inputs, the places of values, and the problems found so far.

A kind gets a `Place` with each value. A bad value becomes a problem at that place, and the load goes on. If the value came
from the environment, the problem names the variable.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec

from poller.config.checks import BadValueError, is_name
from poller.config.values import show
from poller.core.errors import ConfigError, Problem


class Reading(msgspec.Struct):
    """One load. `origins` maps paths such as `poll.interval` to the variables that set them.

    `base`: the directory where relative paths of the file start. `is_private`: no other user can read the file.
    """

    environ: Mapping[str, str]
    origins: Mapping[str, str]
    base: Path = Path()
    is_private: bool = True
    check_files: bool = True
    problems: list[Problem] = []


class Place(NamedTuple):
    """The place of a value, such as `sinks[0].url`. `credential` is the prefix of the table's files in
    $CREDENTIALS_DIRECTORY; empty: it has none.
    """

    reading: Reading
    path: str = ""
    credential: str = ""

    def key(self, key: str) -> Place:
        """The place of a key of the table here. A key that is not bare is quoted, so that it does not look like a path."""
        key = key if is_name(key) and "." not in key else show(key)
        return self._replace(path=f"{self.path}.{key}" if self.path else key)

    def below(self, path: str) -> Place:
        """The place at a path below this one, such as `sinks[0].url`; empty: this place."""
        return self._replace(path=f"{self.path}.{path}" if self.path and path else self.path or path)

    def item(self, index: int) -> Place:
        """The place of an element of the list at this place."""
        return self._replace(path=f"{self.path}[{index}]")

    @property
    def variable(self) -> str:
        """The environment variable that set this path or one above it, with the rest of the path; "" if none did."""
        ends = [match.start() for match in re.finditer(r"[.\[]|$", self.path)]
        for end in reversed(ends):
            if name := self.reading.origins.get(self.path[:end]):
                return f"{name}{self.path[end:]}"
        return ""

    @property
    def may_hold_secrets(self) -> bool:
        """Whether no other user can read the value at this place."""
        return self.reading.is_private or bool(self.variable)

    def file(self, text: str) -> Path:
        """The path of this file name. `~/` is the home directory; a relative path in the file starts at the file's directory."""
        if text.startswith("~/") and (home := self.reading.environ.get("HOME")):
            text = f"{home}{text[1:]}"
        return Path(text) if self.variable else self.reading.base / text

    def add(self, message: str, hint: str = "", kind: type[Problem] = Problem) -> None:
        """Record a problem. It names the variable if one set the value."""
        # If a variable goes deeper than the key, such as POLL__INTERVAL__X, that variable is the problem.
        is_key = self.path == "state_dir" or ("." in self.path and not self.path.startswith(("sinks", "accounts")))
        deeper = (f"{self.path}.", f"{self.path}[")
        below = [name for path, name in self.reading.origins.items() if is_key and path.startswith(deeper)]
        self.reading.problems.append(kind(self.variable or (below or [self.path])[0], message, hint))

    def add_exposed(self, what: str) -> None:
        """Record that a secret is in a file that others can read."""
        self.add(
            f"{what} stands in a file that others can read", "chmod 600 the file, or keep the secret in its own file"
        )

    def note(self, error: ValueError | ConfigError) -> None:
        """Record an error of the value at this place as a problem."""
        if isinstance(error, ConfigError):
            self.reading.problems.extend(error.problems)
        elif isinstance(error, BadValueError):
            self.add(error.message, error.hint)
        else:
            self.add(str(error))
