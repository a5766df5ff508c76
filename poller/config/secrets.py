"""Secrets: a type that cannot be printed by accident, and the sources of secrets.

Only code that needs the value itself, such as for a header or a digest, calls `secret.reveal()`. A source is
read again for each use, so a key replaced on disk takes effect without a restart. No message holds a value.
"""

from __future__ import annotations

import codecs
import errno
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple, NoReturn

from poller.config.trust import read_trusted
from poller.core.errors import ConfigError, FileProblem, Problem, TransientError

MASK = "********"
_MAX_SECRET_BYTES = 64 * 1024
_NO_MORE_FILES = (errno.EMFILE, errno.ENFILE)
# Errors of reading a file that have nothing to do with the file and may pass.
_PASSING = (*_NO_MORE_FILES, errno.ENOMEM, errno.EIO, errno.ESTALE, errno.ETIMEDOUT)

Origin = Literal["file", "env", "credential", "inline", "missing"]


class Secret:
    """A value that is always printed as `********`, and cannot be pickled or serialised."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """The value itself, for the code that sends it."""
        return self._value

    def __repr__(self) -> str:
        return MASK

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        return MASK

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._value == other._value

    def __hash__(self) -> int:
        return hash(self._value)

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a secret is not serialised")


class SecretSource:
    """Where a secret comes from: `origin` and `place` (a file, a variable's name) are safe to print.

    `path` is its key in the configuration, for messages. `is_text`: it is a password or key,
    which may hold spaces; otherwise it is a token, which becomes a header unchanged.
    """

    __slots__ = ("_environ", "_inline", "hint", "is_text", "origin", "path", "place")

    def __init__(
        self,
        origin: Origin,
        place: str,
        *,
        path: str,
        is_text: bool = False,
        environ: Mapping[str, str] | None = None,
        inline: Secret | None = None,
        hint: str = "",
    ) -> None:
        self.origin = origin
        self.place = place
        self.path = path
        self.is_text = is_text
        self.hint = hint
        self._environ = environ or {}
        self._inline = inline

    @property
    def remedy(self) -> str:
        """What to do so that a running service uses a new secret."""
        match self.origin:
            case "credential":
                return "replace the file that LoadCredential= names, then restart: the service has a copy"
            case "env":
                return f"set {self.place} again, then restart"
            case "inline":
                return f"replace {self.path} in the configuration, then reload"
            case _:
                return f"replace {self.place}: it is read again each time"

    def read(self) -> Secret:
        """The current secret; files are read again each time.

        Raises: ConfigError if it is missing, unreadable, empty, or holds characters that a header must not hold;
        TransientError if it cannot be read now for a reason that may pass.
        """
        if self.origin in ("file", "credential"):
            value = self._read_file()
        elif self.origin == "env":
            value = self._environ.get(self.place, "")
            value = value.removeprefix("\ufeff").rstrip("\r\n")  # as for a file: values of Kubernetes may have these
            if not value:
                raise self._error(f"the environment variable {self.place} is not set", f"set {self.place}")
        elif self._inline is not None:
            value = self._inline.reveal()
        else:
            raise self._error("missing", self.hint)
        if not value.strip():
            kind = FileProblem if self.origin in ("file", "credential") else Problem
            raise ConfigError([kind(self.path, f"{self} is empty", "put the token or key into it")])
        if "\n" in value.strip():
            message = f"{self} holds a control character: it has several lines"
            raise self._error(message, "leave the one line of the token or key in it")
        if not value.isprintable():
            raise self._error(f"{self} holds a control character", "it must be one line of text")
        if not self.is_text and len(value) > 1 and value[0] == value[-1] and value[0] in "\"'":
            raise self._error(f"{self} stands in quotes", "leave the quotes out")
        if not self.is_text and (" " in value or not value.isascii()):
            raise self._error(f"{self} holds a space or a character beyond ASCII", "give the bare token or key")
        return Secret(value)

    def _read_file(self) -> str:
        path = Path(self.place)
        try:
            if path.is_fifo():  # opening it could block
                raise self._error(f"key file {path} is a pipe", "use a file: a secret is read again when it is refused")
            content, _, refusal = read_trusted(path, _MAX_SECRET_BYTES + 1, is_secret=True)
        except OSError as error:
            if error.errno in _PASSING:
                remedy = "raise the limit of open files (LimitNOFILE=, ulimit -n)"
                hint = remedy if error.errno in _NO_MORE_FILES else ""
                message = f"key file {self.place} cannot be read now: {error.strerror}"
                raise TransientError(message, hint=hint) from error
            message = f"unreadable key file {self.place}: {error.strerror}"
            problem = FileProblem(self.path, message, "check that the file exists and that this user can read it")
            raise ConfigError([problem]) from error
        if self.origin == "file" and refusal is not None:  # systemd protects a credential
            raise self._error(*refusal)
        if len(content) > _MAX_SECRET_BYTES:
            raise self._error(f"key file {self.place} is larger than 64 KiB", "check that this is the right file")
        if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            hint = "save it as UTF-8: in PowerShell, Out-File -Encoding ascii -NoNewline"
            raise self._error(f"key file {self.place} is UTF-16 text", hint)
        try:
            text = content.decode("utf-8-sig")  # Windows may add a byte order mark
        except UnicodeDecodeError:
            # `from None`: the cause would carry the bytes of the secret.
            raise self._error(f"key file {self.place} is not UTF-8 text") from None
        return text.removesuffix("\n").removesuffix("\r")

    def _error(self, message: str, hint: str = "") -> ConfigError:
        return ConfigError.of(self.path, message, hint)

    def __str__(self) -> str:
        match self.origin:
            case "file":
                return f"key file {self.place}"
            case "credential":
                return f"systemd credential {self.place}"
            case "env":
                return f"environment variable {self.place}"
            case "inline":
                return "value in the configuration"
            case _:
                return "missing"

    def __repr__(self) -> str:
        return f"<SecretSource {self.path}: {self}>"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SecretSource):
            return NotImplemented
        mine, theirs = (self.origin, self.place, self.is_text), (other.origin, other.place, other.is_text)
        return mine == theirs and self._inline == other._inline

    def __hash__(self) -> int:
        return hash((self.origin, self.place))

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("the source of a secret is not serialised")


class Credentials(NamedTuple):
    """The login for a server: a bearer `token`, or `username` and `password`. `origin` is safe to print.

    `remedy`: what to do so that a running service uses new ones.
    """

    origin: str
    token: Secret | None = None
    username: str = ""
    password: Secret | None = None
    remedy: str = ""

    @classmethod
    def read(cls, source: SecretSource, username: str = "") -> Credentials:
        """Read this source: the password of `username` if it is given, otherwise a token.  Raises: as `SecretSource.read`."""
        secret = source.read()
        if username:
            return cls(str(source), username=username, password=secret, remedy=source.remedy)
        return cls(str(source), token=secret, remedy=source.remedy)
