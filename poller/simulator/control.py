"""The control and oracle endpoints below `/_simulator/`, with which another process controls a world.

GET  state                  contracts, API requests, intakes, faults
GET  entries?contract=N     every entry of a contract, NDJSON, oldest first (`&visible=1`: only those shown)
GET  accepted?intake=NAME   the lines an intake stored, NDJSON (needs the setting `keep_lines`)
GET  books?intake=NAME      {"expected", "received", "lost", "repeated", "invented"} (`&contract=N`: of one)
GET  settings               all settings
POST entries                {"contract": N, "entries": [...], "count": 0, "at": null, "span_seconds": 0,
                            "visible_in_seconds": 0}: see `World.add_entries`
POST faults                 ["500:10%", ...] or {"faults": [...]}: replaces all faults
POST settings               {"api_key": "...", ...}: changes those named

Bad requests answer 400 with {"error": "..."}.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

import msgspec

from poller.core.errors import ConfigError
from poller.simulator.answers import Answer, Request, json_answer
from poller.simulator.world import World

PREFIX = "/_simulator/"
_NDJSON = "application/x-ndjson"


class _NewEntries(msgspec.Struct, forbid_unknown_fields=True):
    contract: int
    entries: list[msgspec.Raw] = []
    count: int = 0
    at: datetime | None = None
    span_seconds: float = 0
    visible_in_seconds: float = 0


class _Faults(msgspec.Struct, forbid_unknown_fields=True):
    faults: list[str]


def _contract(world: World, request: Request) -> int:
    text = request.query.get("contract", "")
    if not text.isdigit() or int(text) not in world.logs:
        raise ConfigError.of("contract", f"{text!r} is unknown")
    return int(text)


def _intake_name(world: World, request: Request) -> str:
    name = request.query.get("intake", "")
    if name not in world.intakes:
        raise ConfigError.of("intake", f"{name!r} is unknown", f"one of {', '.join(world.intakes)}")
    return name


def _get_entries(world: World, request: Request) -> Answer:
    is_visible_only = request.query.get("visible", "") not in ("", "0")
    lines = world.oracle(_contract(world, request), visible_only=is_visible_only)
    return Answer(200, content_type=_NDJSON, lines=lines)


def _get_accepted(world: World, request: Request) -> Answer:
    lines = world.intakes[_intake_name(world, request)].lines
    return Answer(200, content_type=_NDJSON, lines=iter(lines))


def _get_books(world: World, request: Request) -> Answer:
    contracts = [_contract(world, request)] if "contract" in request.query else None
    return json_answer(200, world.books(_intake_name(world, request), contracts)._asdict())


def _post_entries(world: World, request: Request) -> Answer:
    new = msgspec.json.decode(request.body, type=_NewEntries)
    added = world.add_entries(
        new.contract,
        [bytes(entry) for entry in new.entries],
        count=new.count,
        at=new.at,
        span_seconds=new.span_seconds,
        visible_in_seconds=new.visible_in_seconds,
    )
    return json_answer(200, {"added": added})


def _post_faults(world: World, request: Request) -> Answer:
    new = msgspec.json.decode(request.body, type=list[str] | _Faults)
    world.set_faults(new.faults if isinstance(new, _Faults) else new)
    return json_answer(200, {"faults": list(world.faults.specs)})


def _post_settings(world: World, request: Request) -> Answer:
    world.change_settings(**msgspec.json.decode(request.body, type=dict[str, Any]))
    return json_answer(200, world.settings)


_ROUTES: dict[tuple[str, str], Callable[[World, Request], Answer]] = {
    ("GET", "state"): lambda world, _: json_answer(200, world.state()),
    ("GET", "settings"): lambda world, _: json_answer(200, world.settings),
    ("GET", "entries"): _get_entries,
    ("GET", "accepted"): _get_accepted,
    ("GET", "books"): _get_books,
    ("POST", "entries"): _post_entries,
    ("POST", "faults"): _post_faults,
    ("POST", "settings"): _post_settings,
}


def answer_control(world: World, request: Request) -> Answer:
    """Answer a control request."""
    route = _ROUTES.get((request.method, request.path.removeprefix(PREFIX).strip("/")))
    if route is None:
        known = ", ".join(f"{method} {name}" for method, name in _ROUTES)
        return json_answer(404, {"error": f"there is {known}"})
    try:
        return route(world, request)
    except (ConfigError, msgspec.DecodeError) as error:
        return json_answer(400, {"error": str(error)})
