"""How an event becomes what a sink sends of it, as `format` of its table says."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from poller.config import ActionSink, MoesifSink
from poller.core.events import OutboxEvent

if TYPE_CHECKING:
    from poller.core.mapping.moesif import ActionMaker


def build_render(settings: ActionSink) -> Callable[[OutboxEvent], bytes] | None:
    """How an event becomes a line for this sink; None: as it is."""
    return None if not isinstance(settings, MoesifSink) and settings.format == "raw" else build_actions(settings).make


def build_actions(settings: ActionSink | None) -> ActionMaker:
    """What makes Moesif actions as the table says, or as usual without one."""
    from poller.core.mapping.moesif import ActionMaker

    if settings is None:
        return ActionMaker()
    return ActionMaker(
        action_name=settings.action_name,
        company_id=settings.company_id,
        user_id=settings.user_id,
        uri_base=settings.uri_base,
    )
