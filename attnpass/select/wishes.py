"""A policy against the registered kernels and the machine: every name in every clause, before anything is compiled."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace

from attnpass.errors import KernelUnavailableError, UnknownKernelError, closest, did_you_mean
from attnpass.ir.decision import AUTO, NATIVE
from attnpass.kernels.hub_module import FORMS
from attnpass.kernels.kernel import Kernel
from attnpass.machine.machine import Machine
from attnpass.settings.config import HINT, KERNEL, Config
from attnpass.settings.policy import Policy

ALIKE = 0.72  # of 1: how like a name has to be to be what was meant
PART = 4  # letters that a part of a name has at least


def resolve_policy(policy: Policy, kernels: Mapping[str, Kernel], origin: str = KERNEL) -> tuple[str, ...]:
    """The registered names of all kernels that some clause names, in order, aliases followed; ``auto`` stays.

    Args:
        policy: what was wished for.
        kernels: those that there are, by name.
        origin: where the policy was written.

    Raises:
        UnknownKernelError: a name that no kernel has, with the clause that it stands in; the message lists the legal
            ones.
    """
    return tuple(dict.fromkeys(name for _, name in _named(policy, kernels, origin)))


def check_policy(policy: Policy, kernels: Mapping[str, Kernel], machine: Machine, origin: str = KERNEL) -> None:
    """Fail at compile start if a kernel that some clause names cannot be used at all because of its library.

    Raises:
        KernelUnavailableError: with the clause, the version found, the version wanted and the install line.
    """
    for standing, name in _named(policy, kernels, origin):
        if name == AUTO:
            continue
        library = kernels[name].limits_for(machine).library
        problem = machine.library_problem(library)
        if problem:
            raise KernelUnavailableError(
                f"choosing a kernel: {origin} names {name}{standing}, whose library {library.name} is {problem} "
                f"here, needs {library.wanted}; run: {library.installation()}"
            )


def with_hint(config: Config, kernels: Mapping[str, Kernel]) -> tuple[Config, str]:
    """``config``, with the kernel that Diffusers' own variable names before ``auto``; and the sentence that says so.

    It names the kernel of another program, so it is followed only where that harms nobody: never an error, nothing
    approximate and nothing that would be downloaded. ``native`` is Diffusers' default, and says nothing.
    """
    kernel = kernels.get(_meant(kernels).get(config.hint, ""))
    if not config.hint or (kernel is not None and kernel.name == NATIVE):
        return config, ""
    said = f"{HINT} is {config.hint!r} and {KERNEL} is unset: "
    if kernel is None or not kernel.limits.exact:
        what = "a kernel that is approximate" if kernel is not None else "no kernel that is here without being named"
        return config, f"{said}that is {what}, so it stays with auto; name it in {KERNEL} to have it"
    policy = Policy(default=(kernel.name, AUTO))
    return replace(config, kernel=policy, origin={**config.origin, "kernel": HINT}), f"{said}read as {policy}"


def _named(policy: Policy, kernels: Mapping[str, Kernel], origin: str) -> Iterator[tuple[str, str]]:
    """Where each name stands, in words, and the registered name that it means."""
    meant = _meant(kernels)
    for clause, wishes in policy.wish_lists():
        standing = f" in the clause {clause!r}" if clause else ""
        for wish in wishes:
            if wish not in meant:
                raise UnknownKernelError(
                    f"choosing a kernel: {origin} names {wish!r}{standing}, which is not a kernel"
                    f"{_suggestion(wish, meant)} Legal names: {_legal(kernels)}"
                )
            yield standing, meant[wish]


def _meant(kernels: Mapping[str, Kernel]) -> dict[str, str]:
    """Every name that may be written, and the registered name that it means."""
    return {AUTO: AUTO, **{name: each.name for each in kernels.values() for name in (each.name, *each.aliases)}}


def _legal(kernels: Mapping[str, Kernel]) -> str:
    """Every kernel with its other names in brackets, and the forms of names of the Hub."""
    each = (f"{one.name} ({', '.join(one.aliases)})" if one.aliases else one.name for one in kernels.values())
    return ", ".join([AUTO, *each, *FORMS])


def _suggestion(wish: str, meant: Mapping[str, str]) -> str:
    """The kernel whose name, or a part of it, was meant; none where nothing comes near: another number is another one.

    >>> _suggestion("Flash-Attention-3", {"flash_attention_3": "flash3", "flash_attention_2": "flash2"})
    ', did you mean flash3?'
    """
    asked = re.sub(r"^(fa|flashattn)(?=\d)", "flash", _plain(wish))
    names = {_plain(name): kernel for name, kernel in meant.items() if _digits(name) == _digits(asked)}
    found = closest(asked, names, ALIKE)
    if not found:
        parts = [name for name in names if _is_part(_letters(name), _letters(asked))]
        found = min(parts, key=lambda name: abs(len(name) - len(asked)), default="")
    return did_you_mean(names.get(found, ""))


def _is_part(one: str, other: str) -> bool:
    short, long = sorted((one, other), key=len)
    return len(short) >= PART and short in long


def _plain(name: str) -> str:
    return re.sub(r"[\W_]", "", name.lower())


def _letters(name: str) -> str:
    return re.sub(r"\d", "", name)


def _digits(name: str) -> str:
    return re.sub(r"\D", "", name)
