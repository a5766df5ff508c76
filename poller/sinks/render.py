"""Turning an event into the line that a sink sends, as `format` of its table says."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Protocol

from poller.config import ActionSink, MoesifSink, Sink
from poller.config.sink_base import Format
from poller.core.events import OutboxEvent

if TYPE_CHECKING:
    from poller.core.mapping.moesif import ActionMaker


class Render(Protocol):
    """Turns an event into a JSON object in a format, on one line."""

    def __call__(self, event: OutboxEvent, *, max_bytes: int | None = None) -> bytes:
        """The entry in it is shortened, with a marker, if the line would be longer than `max_bytes`."""
        ...


def build_render(settings: ActionSink) -> Render | None:
    """The function that turns an event into a line for this sink; None: the line as it is."""
    return _render("moesif-action" if isinstance(settings, MoesifSink) else settings.format, settings)


def chosen_render(name: Format, sinks: Iterable[Sink]) -> Render | None:
    """The same for a format of the command line. Moesif actions use the keys of the first sink that sends actions."""
    candidates = (sink for sink in sinks if isinstance(sink, ActionSink))
    is_theirs = (sink for sink in candidates if isinstance(sink, MoesifSink) or sink.format == "moesif-action")
    return _render(name, next(is_theirs, None))


def _render(name: Format, actions: ActionSink | None) -> Render | None:
    match name:
        case "raw":
            return None
        case "ocsf":
            from poller.core.mapping.ocsf import OCSF

            return OCSF
        case "ecs":
            from poller.core.mapping.ecs import ECS

            return ECS
        case "moesif-action":
            return build_actions(actions).make


def build_actions(settings: ActionSink | None) -> ActionMaker:
    """The function that makes Moesif actions as the table says, or with defaults without one."""
    from poller.core.mapping.moesif import ActionMaker

    if settings is None:
        return ActionMaker()
    return ActionMaker(
        action_name=settings.action_name,
        company_id=settings.company_id,
        user_id=settings.user_id,
        uri_base=settings.uri_base,
    )
