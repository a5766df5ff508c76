"""One load of the configuration: where a value stands, what it may look at, and the problems found so far.

A kind gets a `Place` beside its value. A bad value becomes a problem at that place and never stops the rest. A problem of a
value that the environment gave names the variable.
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

    `base` is where relative paths of the file start. `is_private`: no other user can read the file.
    """

    environ: Mapping[str, str]
    origins: Mapping[str, str]
    base: Path = Path()
    is_private: bool = True
    check_files: bool = True
    problems: list[Problem] = []


class Place(NamedTuple):
    """Where a value stands, such as `sinks[0].url`. `credential` begins the names of the table's files in
    $CREDENTIALS_DIRECTORY; empty: it has none.
    """

    reading: Reading
    path: str = ""
    credential: str = ""

    def key(self, key: str) -> Place:
        """One key further. A key that is not bare is quoted, so that it cannot pass for something else."""
        key = key if is_name(key) and "." not in key else show(key)
        return self._replace(path=f"{self.path}.{key}" if self.path else key)

    def below(self, path: str) -> Place:
        """What stands at a path from here, such as `sinks[0].url`; empty: here."""
        return self._replace(path=f"{self.path}.{path}" if self.path and path else self.path or path)

    def item(self, index: int) -> Place:
        """An element of the list that stands here."""
        return self._replace(path=f"{self.path}[{index}]")

    @property
    def variable(self) -> str:
        """What the user wrote, where an environment variable set this path or one above it; else empty."""
        ends = [match.start() for match in re.finditer(r"[.\[]|$", self.path)]
        for end in reversed(ends):
            if name := self.reading.origins.get(self.path[:end]):
                return f"{name}{self.path[end:]}"
        return ""

    @property
    def may_hold_secrets(self) -> bool:
        """Whether nobody else can read what stands here."""
        return self.reading.is_private or bool(self.variable)

    def file(self, text: str) -> Path:
        """The file of that name: `~/` is the home directory, and a relative path starts at the configuration file."""
        if text.startswith("~/") and (home := self.reading.environ.get("HOME")):
            text = f"{home}{text[1:]}"
        return Path(text) if self.variable else self.reading.base / text

    def add(self, message: str, hint: str = "", kind: type[Problem] = Problem) -> None:
        """Note a problem, at the variable where there is one."""
        # A variable that goes deeper than the key, as POLL__INTERVAL__X does, is what is wrong with the key.
        is_key = self.path == "state_dir" or ("." in self.path and not self.path.startswith(("sinks", "accounts")))
        deeper = (f"{self.path}.", f"{self.path}[")
        below = [name for path, name in self.reading.origins.items() if is_key and path.startswith(deeper)]
        self.reading.problems.append(kind(self.variable or (below or [self.path])[0], message, hint))

    def add_exposed(self, what: str) -> None:
        """Note that a secret stands where others can read it."""
        self.add(
            f"{what} stands in a file that others can read", "chmod 600 the file, or keep the secret in its own file"
        )

    def note(self, error: ValueError | ConfigError) -> None:
        """Turn what is wrong with the value here into a problem."""
        if isinstance(error, ConfigError):
            self.reading.problems.extend(error.problems)
        elif isinstance(error, BadValueError):
            self.add(error.message, error.hint)
        else:
            self.add(str(error))
