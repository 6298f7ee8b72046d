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
from pathlib import Path
from typing import Any

from attnpass.errors import ConfigError, closest, did_you_mean
from attnpass.ir.call import AttentionCall
from attnpass.settings import policy
from attnpass.settings.decisions import DecisionsError, Locked, load
from attnpass.settings.policy import Choice, Policy, PolicyError

PREFIX = "ATTNPASS_"
OPTION_PREFIX = "attnpass."
KERNEL = "ATTNPASS_KERNEL"
HINT = "DIFFUSERS_ATTN_BACKEND"
SYNONYMS = {"backend": "kernel", "backends": "kernel", "attn_backend": "kernel", "attention": "kernel"}
written_as: dict[str, str] = {}  # a variable that the command line sets -> what the user wrote instead
LOG_LEVELS = {"warning": logging.WARNING, "info": logging.INFO, "debug": logging.DEBUG}


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


def _setting(default: Any, meaning: str, legal: str, parse: Callable[[str], Any]) -> Any:
    """A field of `Config` that knows of itself what `Variable` says."""
    return field(default=default, metadata={"meaning": meaning, "legal": legal, "parse": parse})


def _switch(default: bool, meaning: str) -> Any:
    return _setting(default, meaning, "0 or 1", _flag)


@dataclass(frozen=True, slots=True)
class Config:
    """The settings in force for one compilation, each declared here and nowhere else. Build one with `Config.load`.

    ``origin`` has the variable or option that each setting comes from which is not left to its default, and ``hint``
    what Diffusers' own variable says where no kernel is named (`attnpass.select.wishes.with_hint`).
    """

    kernel: Policy = _setting(  # noqa: RUF009 (it makes a field)
        Policy(),
        "Ordered wish list of kernels; each call takes the first one that can honour it. `auto` is the fastest exact "
        "kernel on this machine, `native` leaves `F.scaled_dot_product_attention` alone. Conditions give some calls "
        "a list of their own.",
        "kernel names separated by commas, such as flex,native_flash (`attnpass kernels` lists them); behind "
        "semicolons `CONDITION=names` for some calls, such as `sage; cross=native_cudnn; blocks.0.*=flash3`",
        policy.parse,
    )
    strict: bool = _switch(
        False, "1: a call that no wished kernel takes is an error with all reasons, instead of being kept as it is."
    )
    log: str = _setting(
        "warning",
        "warning; info: one block per graph; debug: every trial of every call, and the graph before and after.",
        "warning, info or debug",
        _level,
    )
    report: str | None = _setting(
        None, "Folder that gets one JSON and one HTML file per compiled graph, and an index.", "a folder", _text
    )
    verify: bool = _switch(
        False,
        "1: the first run of each rewritten call is compared with what your program computes, on your data; one that "
        "is off is reported and put back.",
    )
    tune: bool | None = _setting(
        None,
        "1: each new kind of call is timed once on this machine, by every exact kernel that takes it, and `auto` uses "
        "the fastest. Unset: on NVIDIA GPUs, by the kernels that the table of costs leaves open and that need no "
        "compilation, for at most 1 s a graph. What came out is remembered in the cache folder. 0: nothing.",
        "0 or 1",
        _flag,
    )
    probe: bool = _switch(
        True,
        "1: a library's kernel is tried once on random data before its first use for a kind of call on this machine; 0 "
        "trusts it.",
    )
    cache: str | None = _setting(None, "Folder for what was learnt about kernels on this machine.", "a folder", _text)
    trust_remote_code: bool = _switch(
        False,
        "1: `hub:` kernels of any publisher may be loaded and run, not only of those that the Hugging Face Hub trusts.",
    )
    limit: int | None = _setting(
        None,
        "Rewrite only the first n calls of each graph and keep the others, to bisect a wrong result.",
        "a number, 0 or more",
        _count,
    )
    compiler: str = _setting(
        "inductor",
        "Who compiles after the pass: any backend that torch.compile knows, or `aot:NAME` to hand NAME the "
        "ahead-of-time (ATen, forward and backward) graphs.",
        "inductor, aot_eager, eager, openxla, any registered backend, or aot:NAME",
        _text,
    )
    decisions: Locked | None = _setting(  # noqa: RUF009 (it makes a field)
        None,
        "File that `attnpass lock` wrote: each call gets the kernel that it names. Where that cannot be, `auto` "
        "chooses and a warning says so; with `ATTNPASS_STRICT=1` it is an error.",
        "a file that `attnpass lock` wrote",
        load,
    )
    hint: str = ""
    origin: Mapping[str, str] = field(default_factory=dict, compare=False)

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
                origin[variable.field] = written_as.get(variable.name, variable.name)
                given[variable.field] = _parse(variable, text, origin[variable.field])
        known_options = {variable.option: variable for variable in VARIABLES}
        for key, value in (options or {}).items():
            if key not in known_options:
                raise ConfigError(_unknown("option", key, list(known_options)))
            variable = known_options[key]
            given[variable.field] = _parse(variable, _as_text(value), f"options[{key!r}]")
            origin[variable.field] = f"options[{key!r}]"
        hint = "" if "kernel" in given else environ.get(HINT, "").strip()
        return cls(**given, hint=hint, origin=origin)

    @property
    def kernel_origin(self) -> str:
        """Where the policy was written."""
        return self.origin.get("kernel", KERNEL)

    def to_dict(self) -> dict[str, Any]:
        """JSON form, without where the values came from."""
        lists = {"kernel": list(self.kernel.default), "clauses": list(map(str, self.kernel.clauses))}
        plain = {v.field: getattr(self, v.field) for v in VARIABLES if v.field not in lists}
        return lists | plain | {"decisions": _as_text(self.decisions) or None}

    @property
    def wishes(self) -> tuple[str, ...]:
        """The kernels that any clause, or the file of decisions, names."""
        return (*self.kernel.wishes, *sorted(self.decisions.kernels if self.decisions else ()))

    def choose(self, call: AttentionCall) -> Choice:
        """The wish list for ``call``: the kernel that a file of decisions names, else what the policy says."""
        locked = self.decisions.kernel_of(call) if self.decisions else None
        if locked is None:
            return self.kernel.choose(call)
        return Choice((locked,) if self.strict else (locked, *policy.DEFAULT), f"{locked} of {self.decisions}")

    def rows(self) -> list[tuple[str, str, str]]:
        """For people: variable, value as a user would write it, and where it comes from."""
        values = [(variable, _as_text(getattr(self, variable.field))) for variable in VARIABLES]
        rows = [(each.name, text or "unset", self.origin.get(each.field, "default")) for each, text in values]
        return [*rows, *([(HINT, self.hint, "a hint")] if self.hint else [])]


@dataclass(frozen=True, slots=True)
class Variable:
    """What is known of one setting.

    Attributes:
        field: name of the attribute of `Config`, and of the option after ``attnpass.``.
        default: the default as a user would write it, ``""`` for unset.
        meaning: one sentence for the docs.
        legal: the legal values in words, for the docs and for error messages.
        parse: text to value; raises ValueError or KeyError on an illegal text.
    """

    field: str
    default: str
    meaning: str
    legal: str
    parse: Callable[[str], Any]

    @property
    def name(self) -> str:
        return PREFIX + self.field.upper()

    @property
    def option(self) -> str:
        return OPTION_PREFIX + self.field


def raw_variables() -> tuple[Callable[[Any], Any], list[Any]]:
    """What reads a variable, and the keys that it knows ours by: for a guard that asks before each call.

    It looks into the dict behind ``os.environ``, where there is one: its values are not decoded at each look.
    """
    data, names = getattr(os.environ, "_data", None), [*(variable.name for variable in VARIABLES), HINT]
    return (os.environ.get, names) if data is None else (data.get, list(map(os.environ.encodekey, names)))


def home_of_caches() -> Path:
    """``$XDG_CACHE_HOME``, or ``~/.cache``.

    Raises:
        RuntimeError, KeyError: there is no home.
    """
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


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


def refuse_unprefixed(theirs: Mapping[str, Any]) -> None:
    """Inductor knows no option that is called as a setting of ours: its prefix was forgotten.

    Raises:
        ConfigError: with the option that was meant.
    """
    for key in theirs:
        field_name = SYNONYMS.get(key, key)
        if any(variable.field == field_name for variable in VARIABLES):
            raise ConfigError(_unknown("option", key, [variable.option for variable in VARIABLES]))


def _unknown(kind: str, name: str, names: list[str]) -> str:
    prefix = next((one for one in (PREFIX, OPTION_PREFIX) if name.startswith(one)), "")
    bare = name.removeprefix(prefix).lower()
    ours = {each.lower().removeprefix(PREFIX.lower()).removeprefix(OPTION_PREFIX): each for each in names}
    meant = ours.get(SYNONYMS.get(bare, bare)) or closest(name, names)
    return f"reading attnpass settings: unknown {kind} {name}{did_you_mean(meant)} Known: {', '.join(names)}"


def _parse(variable: Variable, text: str, origin: str) -> Any:
    try:
        return variable.parse(text)
    except (PolicyError, DecisionsError) as error:
        raise ConfigError(f"reading attnpass settings: {origin} is {text!r}: {error}") from None
    except (ValueError, KeyError):
        raise ConfigError(
            f"reading attnpass settings: {origin} is {text!r}, needs {variable.legal}; "
            f"unset it for the default ({variable.default or 'unset'})"
        ) from None


def _as_text(value: Any) -> str:
    """As a user would write it; "" for what is unset."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "1" if value else "0"
    if not isinstance(value, (list, tuple)):
        return str(value)
    parts = list(map(str, value))
    return (";" if any("=" in part for part in parts) else ",").join(parts)  # clauses, or the kernels of one list


VARIABLES = tuple(
    Variable(each.name, _as_text(each.default), **each.metadata) for each in fields(Config) if each.metadata
)
