"""Moesif's actions as the tests decode them. A field that Moesif does not have is an error."""

from __future__ import annotations

import msgspec


class Request(msgspec.Struct, forbid_unknown_fields=True):
    """Source: docs/facts.md, "Moesif Actions API"."""

    time: str
    uri: str
    ip_address: str


class Action(msgspec.Struct, forbid_unknown_fields=True):
    """`metadata` is the entry, byte for byte."""

    action_name: str
    transaction_id: str
    request: Request
    metadata: msgspec.Raw
    company_id: str | None = None
    user_id: str | None = None
