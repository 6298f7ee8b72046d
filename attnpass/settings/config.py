"""Every setting of attnpass, declared once.

The environment-variable page of the docs, ``attnpass info`` and the checks below are all printed from `VARIABLES`.
This is the only file that reads the environment. ``torch.compile(..., options={"attnpass.kernel": ...})`` takes the
same settings and wins over the environment.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from attnpass.errors import ConfigError, closest
from attnpass.settings import policy
from attnpass.settings.policy import Clause, Policy, PolicyError

PREFIX = "ATTNPASS_"
OPTION_PREFIX = "attnpass."
LOG_LEVELS = {"warning": logging.WARNING, "info": logging.INFO, "debug": logging.DEBUG}

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Variable:
    """One setting.

    Attributes:
        field: name of the attribute of `Config`, and of the option after ``attnpass.``.
        meaning: one sentence for the docs.
        default: the default as a user would write it, ``""`` for unset.
        legal: the legal values in words, for the docs and for error messages.
        parse: text to value; raises ValueError on an illegal text.
    """

    field: str
    meaning: str
    default: str
    legal: str
    parse: Callable[[str], Any]

    @property
    def name(self) -> str:
        return PREFIX + self.field.upper()

    @property
    def option(self) -> str:
        return OPTION_PREFIX + self.field


def _flag(text: str) -> bool:
    values = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
    return values[text.strip().lower()]


def _level(text: str) -> str:
    level = text.strip().lower()
    LOG_LEVELS[level]
    return level


def _count(text: str) -> int:
    count = int(text)
    if count < 0:
        raise ValueError(text)
    return count


def _text(text: str) -> str:
    if not text.strip():
        raise ValueError(text)
    return text.strip()


FLAG_LEGAL = "0 or 1"
VARIABLES = (
    Variable(
        "kernel",
        "Ordered wish list of kernels; each call takes the first one that can honour it. `auto` is the fastest exact "
        "kernel on this machine, `native` leaves `F.scaled_dot_product_attention` alone. Conditions give some calls "
        "a list of their own.",
        "auto",
        "kernel names separated by commas, such as flex,native_flash (`attnpass kernels` lists them); behind "
        "semicolons `CONDITION=names` for some calls, such as `sage; cross=native_cudnn; blocks.0.*=flash3`",
        policy.parse,
    ),
    Variable(
        "strict",
        "1: a call that no wished kernel takes is an error with all reasons, instead of being kept as it is.",
        "0",
        FLAG_LEGAL,
        _flag,
    ),
    Variable(
        "log",
        "warning; info: one block per graph; debug: every trial of every call, and the graph before and after.",
        "warning",
        "warning, info or debug",
        _level,
    ),
    Variable("report", "Folder that gets one JSON and one HTML file per compiled graph.", "", "a folder", _text),
    Variable(
        "verify",
        "1: the first run of each rewritten call is compared with the reference on your own data; a call that is off "
        "is reported and put back.",
        "0",
        FLAG_LEGAL,
        _flag,
    ),
    Variable(
        "tune",
        "1: each new kind of call is timed once on this machine, by every exact kernel that takes it, and `auto` uses "
        "the fastest. What came out is remembered in the cache folder.",
        "0",
        FLAG_LEGAL,
        _flag,
    ),
    Variable(
        "probe",
        "1: a library's kernel is tried once on random data before its first use for a kind of call on this machine; 0 "
        "trusts it.",
        "1",
        FLAG_LEGAL,
        _flag,
    ),
    Variable("cache", "Folder for what was learnt about kernels on this machine.", "", "a folder", _text),
    Variable(
        "trust_remote_code",
        "1: `hub:` kernels of any publisher may be loaded and run, not only of those that the Hugging Face Hub trusts.",
        "0",
        FLAG_LEGAL,
        _flag,
    ),
    Variable(
        "limit",
        "Rewrite only the first n calls of each graph and keep the others, to bisect a wrong result.",
        "",
        "a number, 0 or more",
        _count,
    ),
    Variable(
        "compiler",
        "Who compiles after the pass: any backend that torch.compile knows, or `aot:NAME` to hand NAME the "
        "ahead-of-time (ATen, forward and backward) graphs.",
        "inductor",
        "inductor, aot_eager, eager, openxla, any registered backend, or aot:NAME",
        _text,
    ),
)


@dataclass(frozen=True, slots=True)
class Config:
    """The settings in force for one compilation. Build one with `Config.load`.

    ``kernel`` is the wish list for calls that none of ``clauses`` matches; `policy` is both.
    """

    kernel: tuple[str, ...] = policy.DEFAULT
    clauses: tuple[Clause, ...] = ()
    strict: bool = False
    log: str = "warning"
    report: str | None = None
    verify: bool = False
    tune: bool = False
    probe: bool = True
    cache: str | None = None
    trust_remote_code: bool = False
    limit: int | None = None
    compiler: str = "inductor"
    origin: Mapping[str, str] = field(default_factory=dict, compare=False, hash=False)

    @classmethod
    def load(cls, options: Mapping[str, Any] | None = None, environ: Mapping[str, str] | None = None) -> Config:
        """Read the environment, then let ``options`` (keys ``"attnpass.<field>"``) override it.

        Raises:
            ConfigError: an illegal value, or an unknown ``attnpass.*`` option.
        """
        environ = os.environ if environ is None else environ
        given: dict[str, Any] = {}
        origin: dict[str, str] = {}
        for variable in VARIABLES:
            text = environ.get(variable.name, "")
            if text:
                given[variable.field] = _parse(variable, text, variable.name)
                origin[variable.field] = variable.name
        known_options = {variable.option: variable for variable in VARIABLES}
        for key, value in (options or {}).items():
            if key not in known_options:
                raise ConfigError(_unknown("option", key, list(known_options)))
            variable = known_options[key]
            given[variable.field] = _parse(variable, _as_text(value), f"options[{key!r}]")
            origin[variable.field] = f"options[{key!r}]"
        parsed: Policy = given.pop("kernel", Policy())
        return cls(kernel=parsed.default, clauses=parsed.clauses, **given, origin=origin)

    @property
    def policy(self) -> Policy:
        return Policy(self.clauses, self.kernel)

    def to_dict(self) -> dict[str, Any]:
        """JSON form, without where the values came from."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "origin"}
        return {**values, "kernel": list(self.kernel), "clauses": list(map(str, self.clauses))}


def unknown_variables(environ: Mapping[str, str] | None = None) -> list[str]:
    """One message for each ``ATTNPASS_*`` variable that does not exist, with the closest known name."""
    environ = os.environ if environ is None else environ
    names = [variable.name for variable in VARIABLES]
    strangers = sorted(key for key in environ if key.startswith(PREFIX) and key not in names)
    return [_unknown("environment variable", key, names) for key in strangers]


def split_options(options: Mapping[str, Any] | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Part ``torch.compile``'s options into ours (``attnpass.*``) and the downstream compiler's."""
    ours = {key: value for key, value in (options or {}).items() if key.startswith(OPTION_PREFIX)}
    theirs = {key: value for key, value in (options or {}).items() if key not in ours}
    return ours, theirs


def _unknown(kind: str, name: str, names: list[str]) -> str:
    hint = closest(name, names) or "."
    return f"reading attnpass settings: unknown {kind} {name}{hint} Known: {', '.join(names)}"


def _parse(variable: Variable, text: str, origin: str) -> Any:
    try:
        return variable.parse(text)
    except PolicyError as error:
        raise ConfigError(f"reading attnpass settings: {origin} is {text!r}: {error}") from None
    except (ValueError, KeyError):
        raise ConfigError(
            f"reading attnpass settings: {origin} is {text!r}, needs {variable.legal}; "
            f"unset it for the default ({variable.default or 'unset'})"
        ) from None


def _as_text(value: Any) -> str:
    if isinstance(value, bool):
        return "1" if value else "0"
    if not isinstance(value, (list, tuple)):
        return str(value)
    parts = list(map(str, value))
    return (";" if any("=" in part for part in parts) else ",").join(parts)  # clauses, or the kernels of one list
