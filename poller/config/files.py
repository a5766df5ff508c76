"""The kinds of files and secrets, which a load checks on the disk.

A secret is given by the name of a file or variable, or directly, or as a credential of systemd. A user may write the secret
itself in place of the name of a file or variable, so no message repeats that value.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from poller.config.checks import BadValueError, check_template, check_text
from poller.config.kinds import Field, Kind, refuse
from poller.config.reading import Place
from poller.config.secrets import MASK, Origin, Secret, SecretSource
from poller.config.trust import read_trusted
from poller.core.errors import FileProblem

# A token put where the name of a file or variable belongs; it must not be repeated in a message.
_MISPLACED = r"(?s)eyJ.*|[^/]{81,}"
_VARIABLE = r"(?!eyJ)[A-Za-z_][A-Za-z0-9_]{0,79}"


class Directory(Kind, frozen=True):
    """A directory. It is created if it does not exist."""

    word: str = "directory"

    def read(self, raw: object, at: Place) -> Path:
        return at.file(check_text(raw) if isinstance(raw, str) else refuse(raw, "text"))

    def write(self, value: Path) -> str:
        return str(value)


class File(Directory, frozen=True):
    """A file that must be readable. `is_private`: other users must not be able to read it, such as a private key."""

    word: str = "file"
    is_private: bool = False

    def read(self, raw: object, at: Place) -> Path:
        file = super().read(raw, at)
        if not os.access(file, os.R_OK) and (copy := find_credential(at.reading.environ, [file.name])):
            return Path(copy)  # systemd's copy of a file that we may not read, as for secrets
        if at.reading.check_files and not os.access(file, os.R_OK):
            hint = "check that the file exists and that this user can read it"
            at.add(f"unreadable file {file}", hint, FileProblem)
        elif at.reading.check_files and self.is_private:
            _, _, refusal = read_trusted(file, 0, is_secret=True)
            if refusal is not None:
                raise BadValueError(*refusal)
        return file


PrivateFile = partial(File, is_private=True)


class OutputPath(Kind, frozen=True):
    """The path of an output file, with or without `{date}`."""

    word: str = "file"

    def read(self, raw: object, at: Place) -> str:
        return str(at.file(check_template(raw) if isinstance(raw, str) else refuse(raw, "text")))


class SecretKind(Kind, frozen=True):
    """A token or key. `is_text`: it may hold spaces, like a password. `aliases`: other endings for its systemd credential."""

    word: str = "secret"
    aliases: tuple[str, ...] = ()
    is_text: bool = False

    endings = ("_file", "", "_env")

    def read(self, raw: object, at: Place) -> SecretSource | None:
        if not isinstance(raw, str):
            refuse(raw, "text")
        if not raw:
            raise BadValueError("must be text, not empty")
        key = at.path.rpartition(".")[2]
        if key.endswith("_env"):
            if not re.fullmatch(_VARIABLE, raw):
                raise BadValueError("is not the name of an environment variable")
            return self._source(at, "env", raw)
        if key.endswith("_file"):
            if re.fullmatch(_MISPLACED, raw) or not raw.isprintable():
                hint = f"the secret itself goes into {key.removesuffix('_file')}, or better a file"
                raise BadValueError("is not the name of a file", hint)
            file = at.file(raw)
            # If we may not read it, use systemd's copy: a credential of the same name.
            copy = None if os.access(file, os.R_OK) else find_credential(at.reading.environ, [file.name])
            return self._source(at, "credential" if copy else "file", copy or str(file))
        if at.may_hold_secrets:
            return self._source(at, "inline", inline=raw)
        at.add_exposed("the secret")
        return None

    def find(self, field: Field, at: Place) -> SecretSource | None:
        names = [f"{at.credential}.{ending}" for ending in (field.key.replace("_", "-"), *self.aliases)]
        at = at.key(field.key)
        if at.credential and (found := find_credential(at.reading.environ, names)):
            return self._source(at, "credential", found)
        if not field.is_required:
            return None
        hint = f"give {field.key}_file or {field.key}_env, or a systemd credential {names[-1]}"
        return self._source(at, "missing", hint=hint)

    def _source(self, at: Place, origin: Origin, place: str = "", *, inline: str = "", hint: str = "") -> SecretSource:
        """The source. It is read once if files are checked.  Raises: ConfigError."""
        source = SecretSource(
            origin,
            place,
            path=at.variable or at.path,
            is_text=self.is_text,
            environ=at.reading.environ,
            inline=Secret(inline) if inline else None,
            hint=hint,
        )
        if at.reading.check_files:
            source.read()
        return source

    def entries(self, key: str, value: SecretSource) -> dict[str, Any]:
        match value.origin:
            case "file" | "credential":
                return {f"{key}_file": value.place}
            case "env":
                return {f"{key}_env": value.place}
            case "inline":
                return {key: MASK}
            case _:
                return {}

    def sample(self, key: str) -> str:
        return f"/etc/ionos-poller/{key.replace('_', '-')}"


def find_credential(environ: Mapping[str, str], names: Iterable[str]) -> str | None:
    """The first of these files that exists in systemd's $CREDENTIALS_DIRECTORY; None if none does."""
    directory = environ.get("CREDENTIALS_DIRECTORY")
    if not directory:
        return None
    files = (os.path.join(directory, name) for name in names)  # noqa: PTH118 - text in, text out
    return next((file for file in files if os.path.isfile(file)), None)  # noqa: PTH113 - never raises
