"""The notifications to systemd, over a socket whose reader may behave in any way."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from poller.service.notify import Notifier


def test_a_reader_that_does_not_read_keeps_nobody_waiting(tmp_path: Path) -> None:
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as deaf:
        deaf.bind(path)
        notifier = Notifier(path)
        for _ in range(10_000):  # its queue has room for far fewer
            notifier.tell(WATCHDOG="1")
        deaf.setblocking(False)
        assert deaf.recv(100) == b"WATCHDOG=1"


@pytest.mark.parametrize("address", [None, "", "/no/such/socket", "@no-such-socket", "/dev/null", "x" * 200])
def test_no_reader_at_all_is_harmless(address: str | None) -> None:
    Notifier(address).tell(READY="1", STATUS="collecting")


@pytest.mark.parametrize("is_abstract", [False, True])
def test_each_variable_is_told_on_a_line_of_its_own(tmp_path: Path, is_abstract: bool) -> None:
    name = f"ionos-poller-test-{tmp_path.name}" if is_abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as reader:
        reader.bind(f"\0{name}" if is_abstract else name)
        reader.settimeout(5)
        Notifier(f"@{name}" if is_abstract else name).tell(READY="1", STATUS="collecting")
        assert reader.recv(1000) == b"READY=1\nSTATUS=collecting"
