"""Another user plants a configuration where root works: the token must not go where it says."""

from __future__ import annotations

NOBODY = 65_534
