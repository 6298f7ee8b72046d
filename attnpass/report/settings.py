"""The settings in force, as rows for people: the HTML page and ``attnpass info`` print them."""

from __future__ import annotations

from typing import Any

from attnpass.settings.config import VARIABLES, Config


def settings_rows(config: Config) -> list[tuple[str, str, str]]:
    """Variable, value and where the value comes from."""
    return [
        (variable.name, _text(config, variable.field), config.origin.get(variable.field, "default"))
        for variable in VARIABLES
    ]


def _text(config: Config, field: str) -> str:
    """A value as a user would write it."""
    value: Any = config.policy if field == "kernel" else getattr(config, field)
    if isinstance(value, bool):
        return str(int(value))
    return "unset" if value is None else str(value)
