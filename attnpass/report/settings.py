"""The settings in force, as rows for people: the HTML page and ``attnpass info`` print them."""

from __future__ import annotations

from typing import Any

from attnpass.config import VARIABLES, Config


def settings_rows(config: Config) -> list[tuple[str, str, str]]:
    """Variable, value and where the value comes from."""
    return [
        (variable.name, _text(getattr(config, variable.field)), config.origin.get(variable.field, "default"))
        for variable in VARIABLES
    ]


def _text(value: Any) -> str:
    """A value as a user would write it."""
    if isinstance(value, bool):
        return str(int(value))
    if value is None:
        return "unset"
    return ",".join(value) if isinstance(value, tuple) else str(value)
