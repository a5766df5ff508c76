"""Reports to systemd: READY, STATUS, WATCHDOG, through its socket. Without a socket, does nothing.

Source: sd_notify(3).
"""

from __future__ import annotations

import socket
from contextlib import suppress


class Notifier:
    """`address` is $NOTIFY_SOCKET, or None outside of systemd."""

    def __init__(self, address: str | None) -> None:
        self._address = f"\0{address[1:]}" if address and address.startswith("@") else address

    def tell(self, **values: str) -> None:
        """Send variables, such as `READY="1"`. Never fails, and never waits for a reader that does not read."""
        if not self._address:
            return
        message = "\n".join(f"{name}={value}" for name, value in values.items())
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
            channel.setblocking(False)
            channel.connect(self._address)
            channel.send(message.encode())
