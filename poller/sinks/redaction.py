"""What is removed from lines, as `[redact]` and the table of a sink say. The deliverer does it, never the sink."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from poller.config import AnySink, Config, Redact, SecretSource


def build_redact(redact: Redact | None, shared_key: SecretSource | None) -> Callable[[bytes], bytes] | None:
    """What takes out of a line what the table says; None where it says nothing. `shared_key` is that of `[redact]`.

    Raises: ConfigError when the key cannot be read.
    """
    if redact is None or not (redact.drop or redact.mask or redact.hash):
        return None
    from poller.core.mapping.redact import Redactor

    source = redact.hash_key or shared_key
    key = source.read().reveal().encode() if redact.hash and source is not None else b""
    return Redactor(drop=redact.drop, mask=redact.mask, hashed=redact.hash, key=key)


def redactions_of(sinks: Iterable[AnySink], config: Config) -> dict[str, Callable[[bytes], bytes]]:
    """What is removed from lines for one sink alone, by the sink's name; without the sinks that get them whole.

    Raises: ConfigError when a key cannot be read.
    """
    found = {sink.name: build_redact(sink.redact, config.redact.hash_key) for sink in sinks}
    return {name: redact for name, redact in found.items() if redact is not None}
