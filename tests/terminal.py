"""A command on a terminal. Its output there differs from its output into a pipe."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import termios
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.commands import start_process

COLUMNS, ROWS = 80, 50
_ESCAPE = re.compile(r"\x1b(\[[0-9;?]*[A-Za-z]|[()][A-Z0-9]|[=>])")
COLOUR = re.compile(r"\x1b\[[0-9;]*(3[1-7]|9[0-7])m")


class Terminal:
    """A command whose stdout and stderr are a terminal, of 80 columns by default. `shown` grows while it runs."""

    def __init__(
        self, command: Sequence[str], cwd: Path, env: Mapping[str, str], *, columns: int = COLUMNS, rows: int = ROWS
    ) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        environment = {"TERM": "xterm", **env}
        self.process = start_process(command, cwd=cwd, env=environment, stdin=slave, stdout=slave, stderr=slave)
        os.close(slave)
        self._said = b""
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        while True:
            try:
                piece = os.read(self._master, 65536)
            except OSError:  # the other end is closed
                return
            if not piece:
                return
            self._said += piece

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    @property
    def raw(self) -> str:
        return self._said.decode(errors="replace")

    @property
    def shown(self) -> str:
        """The output without control sequences for the cursor and colours."""
        return _ESCAPE.sub("", self.raw).replace("\r", "")

    @property
    def painted(self) -> list[str]:
        """The lines on the screen at the end, after all overwriting. A line that is too wide is not wrapped."""
        lines, row, column = [""], 0, 0
        for piece in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[()][A-Z0-9]|\x1b[=>]|[\r\n]|[^\x1b\r\n]+", self.raw):
            match piece[0], piece[-1]:
                case ("\n", _):
                    row, column = row + 1, 0
                    lines += [""] * (row + 1 - len(lines))
                case ("\r", _):
                    column = 0
                case ("\x1b", "A"):
                    row = max(0, row - int(piece[2:-1] or 1))
                case ("\x1b", "K"):
                    lines[row] = ""
                case ("\x1b", _):
                    pass
                case _:
                    lines[row] = lines[row][:column].ljust(column) + piece + lines[row][column + len(piece) :]
                    column += len(piece)
        return lines

    def wait(self, timeout: float = 30) -> int:
        """Wait for the end, and read all output.  Returns: the exit code."""
        try:
            return self.process.wait(timeout)
        finally:
            self.process.kill()
            self.process.wait()
            self._reader.join(timeout)
            os.close(self._master)


def on_terminal(
    command: Sequence[str], cwd: Path, env: Mapping[str, str], *, columns: int = COLUMNS, rows: int = ROWS
) -> Terminal:
    """Run a command on a terminal to its end."""
    terminal = Terminal(command, cwd, env, columns=columns, rows=rows)
    terminal.wait()
    return terminal
