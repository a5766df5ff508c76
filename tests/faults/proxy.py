"""A connection between a replica and its database that can be cut, stall, and lose the answer to a COMMIT.

It reads just enough of PostgreSQL's protocol: the server's messages, to find the answer to COMMIT, and the client's statements,
to find the purpose of a transaction.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress

_COMMITTED = b"COMMIT\0"
_PIECE = 64 * 1024
# The purpose of a transaction, by the words of its statements. If several match, the first of _PURPOSES counts.
WORK = ("settling", "collecting")
LEASE = ("joining", "renewing", "sharing out")
_WORDS = (b"UPDATE places", b"INTO segments", b"INTO replicas", b"UPDATE replicas", b"SET holder")
_PURPOSES = (*WORK, *LEASE, "other")


class Proxy:
    """A port on loopback that forwards connections to the port `upstream`, which may change at any time."""

    def __init__(self, upstream: int) -> None:
        self.upstream = upstream
        self.is_refusing = False
        """Whether a new connection is closed at once."""
        self.lost: Counter[str] = Counter()
        """How many answers to COMMIT were lost, by the purpose of the transaction."""
        self._losing = 0
        self._losing_of: Sequence[str] = ()
        self._connections: set[_Connection] = set()
        self._loop = asyncio.new_event_loop()
        self._flow = asyncio.Event()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(10)
        self.port: int = self._server.sockets[0].getsockname()[1]

    async def _listen(self) -> asyncio.Server:
        self._flow.set()
        return await asyncio.start_server(self._accept, "127.0.0.1", 0)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.is_refusing:
            writer.transport.abort()
            return
        try:
            await self._flow.wait()
            onward = await asyncio.open_connection("127.0.0.1", self.upstream)
        except OSError:  # refuse it, as if nobody listens
            writer.transport.abort()
            return
        connection = _Connection((reader, writer), onward, self._flow, self._loses)
        self._connections.add(connection)
        try:
            await connection.carry()
        finally:
            connection.abort()
            self._connections.discard(connection)

    def _loses(self, purpose: str) -> bool:
        if not self._losing or purpose not in self._losing_of:
            return False
        self._losing -= 1
        self.lost[purpose] += 1
        return True

    def cut(self) -> None:
        """Break every connection, as a restarted firewall does."""
        self._call(lambda: [connection.abort() for connection in list(self._connections)])

    def stall(self, is_stalled: bool) -> None:
        """While on, carry nothing in either direction, and break nothing."""
        self._call(self._flow.clear if is_stalled else self._flow.set)

    def lose_answers(self, count: int, purposes: Sequence[str]) -> None:
        """Let the next COMMITs of transactions for these purposes through, and break their connections before the answer."""
        self._losing_of, self._losing = purposes, count

    async def _end(self) -> None:
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)

    def _call(self, work: Callable[[], object]) -> None:
        done = threading.Event()
        self._loop.call_soon_threadsafe(lambda: (work(), done.set()))
        done.wait(10)

    def close(self) -> None:
        self._call(self._server.close)
        self.cut()
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()


_Side = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class _Connection:
    """A connection of a client, and the one to the server."""

    def __init__(self, near: _Side, far: _Side, flow: asyncio.Event, loses: Callable[[str], bool]) -> None:
        self._near, self._far = near, far
        self._flow = flow
        self._loses = loses
        self._purpose = ""
        self._tls_asked = 0  # pending answers that are one byte, not a message

    async def carry(self) -> None:
        """Carry bytes until either side closes, or an answer is lost."""
        ways = [asyncio.ensure_future(way) for way in (self._carry_questions(), self._carry_answers())]
        with suppress(OSError, asyncio.IncompleteReadError):
            done, _ = await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            for way in done:
                way.result()
        for way in ways:
            way.cancel()

    async def _carry_questions(self) -> None:
        reader, writer = self._near[0], self._far[1]
        while piece := await reader.read(_PIECE):
            if len(piece) == 8 and piece[:4] == b"\0\0\0\x08":  # a request for TLS or GSSAPI
                self._tls_asked += 1
            if b"BEGIN" in piece:
                self._purpose = "" if b"READ ONLY" in piece else "other"
            if self._purpose:
                found = [
                    self._purpose,
                    *(name for words, name in zip(_WORDS, _PURPOSES, strict=False) if words in piece),
                ]
                self._purpose = min(found, key=_PURPOSES.index)
            await self._flow.wait()
            writer.write(piece)
            await writer.drain()

    async def _carry_answers(self) -> None:
        reader, writer = self._far[0], self._near[1]
        while True:
            kind = await reader.readexactly(1)
            if self._tls_asked and kind in b"NSG":
                self._tls_asked -= 1
                message = kind
            else:
                length = await reader.readexactly(4)
                body = await reader.readexactly(int.from_bytes(length) - 4)
                if kind == b"C" and body == _COMMITTED and self._loses(self._purpose):
                    return
                message = kind + length + body
            await self._flow.wait()
            writer.write(message)
            await writer.drain()

    def abort(self) -> None:
        for _, writer in (self._near, self._far):
            writer.transport.abort()
