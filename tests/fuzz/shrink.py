"""A failing program made shorter, a line at a time, as long as it goes on failing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

from tests.fuzz.scope import Program
from tests.fuzz.trial import BAD, attempt

WORD = re.compile(r"\b[A-Za-z_]\w*\b")


def shrunk(program: Program, kernel: str) -> Program:
    """The shortest program found that still fails with ``kernel``."""
    while True:
        for shorter in _shorter(program):
            if _fails(shorter, kernel):
                program = shorter
                break
        else:
            return program


def _fails(program: Program, kernel: str) -> bool:
    try:
        outcomes = attempt(program, (kernel,)).outcomes
    except Exception:  # it does not run any more
        return False
    return any(outcome.verdict in BAD for outcome in outcomes)


def _shorter(program: Program) -> Iterator[Program]:
    """Without one line; without one that names a value, which another value stands in for; without one result."""
    lines = program.source.splitlines()[1:]
    for at in reversed(range(len(lines) - 1)):
        rest = lines[:at] + lines[at + 1 :]
        yield _of(program, rest)
        name, equals, text = lines[at].strip().partition(" = ")
        if equals and name.isidentifier():
            known = {*program.inputs, *(line.strip().partition(" = ")[0] for line in lines[:at])}
            for other in dict.fromkeys(WORD.findall(text)):
                if other != name and other in known:
                    later = [re.sub(rf"\b{name}\b", other, line) for line in lines[at + 1 :]]
                    yield _of(program, lines[:at] + later)
    results = lines[-1].strip().removeprefix("return ").split(", ")
    if len(results) > 1 and "(" not in lines[-1]:
        for at in range(len(results)):
            kept = ", ".join(results[:at] + results[at + 1 :])
            yield _of(program, [*lines[:-1], f"    return {kept}"])


def _of(program: Program, lines: list[str]) -> Program:
    words = set(WORD.findall("\n".join(lines)))
    inputs = {name: tensor for name, tensor in program.inputs.items() if name in words or name in "qkv"}
    source = f"def program({', '.join(inputs)}):\n" + "\n".join(lines) + "\n"
    return replace(program, source=source, inputs=inputs)
