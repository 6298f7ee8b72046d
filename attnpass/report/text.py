"""The report as text: the block that ``ATTNPASS_LOG=info`` prints, and all there is to say for ``debug``.

The block answers "what happened, and why not?" on one screen. Reasons stand only under calls where something was
refused; ``debug`` has every reason of every kernel.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from attnpass.find.found import NearMiss
from attnpass.ir.decision import NATIVE, Answer, Basis, Decision, Reason
from attnpass.ir.limits import Code
from attnpass.report.groups import (
    Group,
    compress,
    counted,
    group_calls,
    group_misses,
    short_source,
    status,
    told_answers,
)
from attnpass.report.record import RENDERINGS, Report

MAX_MISSES = 3
MAX_TIMES = 3  # of kernels in a sentence
LOOKED_FOR = (
    "F.scaled_dot_product_attention, nn.MultiheadAttention, nn.TransformerEncoderLayer and softmax between products; "
    "attention inside a C++ extension, a graph break or @torch.compiler.disable is out of sight"
)


def block(report: Report) -> str:
    """What was rewritten, what was kept and why, equal calls told once."""
    told = [*_error_lines(report), *_group_lines(report), *_expected_lines(report)]
    told += [*_unmatched_lines(report), *_miss_lines(report)]
    return "\n".join([headline(report), *told])


def headline(report: Report) -> str:
    """One line: ``attnpass graph 0: 40 attention calls, 38 rewritten, 2 kept (3.1 ms)``."""
    if report.decisions:
        calls = counted(len(report.decisions), "attention call")
        found = f"{calls}, {report.rewritten} rewritten, {report.kept} kept"
    else:
        found = "the pass failed" if report.error else f"no attention call among {counted(report.nodes, 'node')}"
    return f"attnpass graph {report.graph}: {found} ({report.pass_ms:.1f} ms)"


def debug_text(report: Report) -> str:
    """Every call with every kernel's reasons, every near miss, and the graph's code before and after."""
    lines = [headline(report) + (f" [compilation {report.compile_id}]" if report.compile_id else "")]
    lines += _error_lines(report)
    for decision in report.decisions:
        lines += decision_lines(decision)
    lines += _unmatched_lines(report)
    lines += [f"  {_miss_text(count, miss)}" for count, miss in group_misses(report.near_misses)]
    return "\n".join([*lines, *_code(report)])


def decision_lines(decision: Decision) -> list[str]:
    """One call with every kernel's answer."""
    call = decision.call
    where = f"{call.module or '(top level)'}, {short_source(call.source)}"
    return [f"  call {call.node or '-'} ({call.pattern.value}) in {where}", *_answers(decision)]


def group_lines(group: Group, machine: str = "") -> list[str]:
    """Equal calls with the answer of every kernel for such a device; ``machine`` names one that is not this."""
    return [f"  x{len(group.decisions)} in {group.modules}, {group.sources}", *_answers(group.first, machine, True)]


def _answers(decision: Decision, machine: str = "", folded: bool = False) -> Iterator[str]:
    yield f"      {decision.call.text()}, on {machine or decision.call.device}"
    if mask_text(decision):
        yield f"      mask: {mask_text(decision)}"
    names = ", ".join(decision.tried) or "nothing"
    yield f"      {status(decision)}, because {why(decision)}; considered: {names}"
    yield from (f"      {skipped_text(each)}" for each in decision.skipped)
    here, elsewhere = split_by_device(decision) if folded else (list(decision.answers), [])
    width = max((len(answer.kernel) for answer in here), default=0)
    yield from (f"      {answer.kernel.ljust(width)}  {answered(decision, answer)}" for answer in here)
    if elsewhere:
        yield f"      {elsewhere_text(elsewhere)}"


def split_by_device(decision: Decision) -> tuple[list[Answer], list[Answer]]:
    """The answers of kernels that run on such a device, and of those that do not."""
    foreign = [each for each in decision.answers if Code.DEVICE in {reason.code for reason in each.rejections}]
    return [each for each in decision.answers if each not in foreign], foreign


def elsewhere_text(answers: Iterable[Answer]) -> str:
    """The kernels of other devices, in one line."""
    return f"on other devices only: {', '.join(answer.kernel for answer in answers)}"


def answered(decision: Decision, answer: Answer) -> str:
    """The verdict, and what a run costs if that is known: ``"takes it  ███▌ 0.41 ms"``."""
    ms = decision.ms.get(answer.kernel)
    if ms is None or answer.kernel == NATIVE:
        return verdict(answer)
    return f"{verdict(answer)}  {bar(ms, max(decision.ms.values()))} {ms:.3g} ms"


def why(decision: Decision) -> str:
    """Why the decision came out as it did, in one clause; with the policy's clause, if there are several."""
    sentences = {
        Reason.REQUESTED: f"{decision.kernel} was asked for by name",
        Reason.AUTO: _chosen_by(decision),
        Reason.NONE_ACCEPTED: "no kernel that was asked for takes the call",
    }
    by = f", by the clause {decision.clause}" if decision.clause and decision.reason is not Reason.USER_CHOICE else ""
    return f"{decision.note or sentences[decision.reason]}{by}"  # a reason without a sentence comes with a note


def _chosen_by(decision: Decision) -> str:
    """What ``auto`` went by: numbers only where something was measured."""
    if decision.kernel not in decision.ms:
        return "the first in PyTorch's order that takes the call; none was measured for such a call on such a device"
    known = [f"{name} {ms:.3g} ms" for name, ms in times(decision).items()][:MAX_TIMES]
    return f"the fastest exact kernel that takes the call, by the table: {', '.join(known)}"


def times(decision: Decision) -> dict[str, float]:
    """Milliseconds of the kernels that take the call, as far as they are known, the fastest first."""
    able = {answer.kernel for answer in decision.answers if answer.accepted} - {NATIVE}
    return {name: ms for name, ms in decision.ms.items() if name in able}


def bar(ms: float, longest: float, width: int = 12) -> str:
    """``ms`` beside the longest as a row of blocks, eighths at the end: ``"██████▌"``."""
    eighths = max(1, round(8 * width * ms / longest)) if longest else 1
    return "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()


def expected(report: Report) -> str:
    """What the graph's attention is expected to take, beside PyTorch's own choice; "" where too little is known."""
    told = [d for d in report.decisions if d.rewritten and d.kernel in d.ms and NATIVE in d.ms]
    if not told or len(told) < report.rewritten:
        return ""
    ours, theirs = sum(d.ms[d.kernel] for d in told), sum(d.ms[NATIVE] for d in told)
    gain = f"{theirs / ours:.2f} times faster" if ours < theirs * 0.99 else "no gain by the kernel alone"
    clocked = [decision.basis is Basis.CLOCK for decision in told]
    how = "the clock" if all(clocked) else "the clock and the table" if any(clocked) else "the table"
    return f"attention takes {ours:.3g} ms by {how}, {theirs:.3g} ms as PyTorch would choose: {gain}"


def advice(report: Report) -> dict[str, str]:
    """By kernel: what a library that is not installed would make faster, and the command that installs it."""
    lacking: dict[str, list[Decision]] = {}
    for decision in report.decisions:
        if decision.missing is not None:
            lacking.setdefault(decision.missing.kernel, []).append(decision)
    return {name: _advice(name, decisions) for name, decisions in lacking.items()}


def _advice(name: str, decisions: list[Decision]) -> str:
    found = [decision.missing for decision in decisions if decision.missing]
    now, then, install = sum(one.beside for one in found), sum(one.ms for one in found), found[0].install
    calls = counted(len(decisions), "call")
    return (
        f"{name} is not installed: by the table {calls} would take {then:.3g} ms with it, {now:.3g} ms now "
        f"({now / then:.2f} times faster); {install}"
    )


def skipped_text(skipped: str) -> str:
    """One clause of the policy that was not tried, since the graph does not show whether it holds."""
    return f"skipped the clause {skipped}"


def verdict(answer: Answer) -> str:
    """``"takes it"``, or all the reasons why not."""
    return "takes it" if answer.accepted else "; ".join(dict.fromkeys(map(str, answer.rejections)))


def no_calls_warning(report: Report) -> str:
    """One line for a graph without attention calls: what came nearest, or what was looked for, and what to do."""
    misses = group_misses(report.near_misses)
    nearest = f"nearest: {_miss_place(misses[0][1])}: {misses[0][1].reason}" if misses else f"looked for {LOOKED_FOR}"
    return (
        f"attnpass graph {report.graph}: no attention call among {counted(report.nodes, 'node')}, nothing rewritten; "
        f"{nearest}. `attnpass explain FILE.py` shows what is found in a model; later graphs without a call are not "
        "announced"
    )


def _group_lines(report: Report) -> Iterator[str]:
    groups = group_calls(report)
    counts = [f"x{len(each.decisions)}" for each in groups]
    width = max(map(len, counts), default=0)
    rows = [
        (status(each.first), count.rjust(width), call_text(each.first), each.modules, each.sources)
        for each, count in zip(groups, counts, strict=True)
    ]
    for group, line in zip(groups, aligned(rows), strict=True):
        yield f"  {line}"
        yield from (f"      {reason}" for reason in _told(group.first))


def call_text(decision: Decision) -> str:
    """The call in one line; where its mask is proved and the kernel reads the tensor all the same, that too."""
    read = decision.rewritten and decision.mask_is_read and decision.call.mask.spelled is not None
    return decision.call.text() + (" (read as a tensor)" if read else "")


def mask_text(decision: Decision) -> str:
    """What the mask means and how the kernel gets it; of a call that stays, only the first; "" without one."""
    mask, read = decision.call.mask, decision.mask_is_read
    if read is None:
        return ""
    meaning = mask.meaning or (f"not proved: {mask.stop}" if mask.stop else str(mask))
    return meaning + ("; read as a tensor" if read else "; computed from its meaning") * decision.rewritten


def _told(decision: Decision) -> Iterator[str]:
    """What the block says under a call: why it was kept, and who refused before the chosen kernel."""
    refused = told_answers(decision)
    if decision.note or decision.clause or not (decision.rewritten or refused):
        yield why(decision)
    yield from map(skipped_text, decision.skipped)
    yield from (f"{answer.kernel}: {verdict(answer)}" for answer in refused)
    if decision.call.mask.stop:
        yield f"mask not proved: {decision.call.mask.stop}"


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """A table as lines, its columns two spaces apart."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def unmatched_text(report: Report) -> str:
    """Module patterns of the policy without a call in this graph, beside the modules that there are; "" for none.

    It may be a typing mistake, or be meant for another graph.
    """
    if not report.unmatched:
        return ""
    modules = [decision.call.module for decision in report.decisions]
    here = compress(modules, modules)
    return f"no attention call stands in a module that matches {', '.join(report.unmatched)}; modules here: {here}"


def _expected_lines(report: Report) -> list[str]:
    return [f"  {text}"] if (text := expected(report)) else []


def _unmatched_lines(report: Report) -> list[str]:
    text = unmatched_text(report)
    return [f"  {text}"] if text else []


def _miss_lines(report: Report) -> Iterator[str]:
    """Near misses, where they might be what the reader wonders about: not in a graph full of rewritten calls."""
    if len(report.near_misses) < report.rewritten:
        return
    misses = group_misses(report.near_misses)
    yield from (f"  {_miss_text(count, miss)}" for count, miss in misses[:MAX_MISSES])
    if len(misses) > MAX_MISSES:
        yield f"  almost: {counted(len(misses) - MAX_MISSES, 'more place')} (ATTNPASS_LOG=debug lists them)"


def _miss_text(count: int, miss: NearMiss) -> str:
    return f"almost x{count}: {_miss_place(miss)}: {miss.reason}"


def _miss_place(miss: NearMiss) -> str:
    return f"{miss.node} at {short_source(miss.source)}" if miss.source.file else miss.node


def _error_lines(report: Report) -> Iterable[str]:
    return [f"  {report.error}; the graph runs as it was"] if report.error else []


def _code(report: Report) -> Iterator[str]:
    if not report.code_before:
        return
    if report.code_after == report.code_before:
        yield f"---- attnpass graph {report.graph}: the code, which the pass left as it was ----"
        yield report.code_before.strip("\n")
        return
    yield f"---- attnpass graph {report.graph}: the code before the pass, {counted(report.nodes, 'node')} ----"
    yield report.code_before.strip("\n")
    yield f"---- attnpass graph {report.graph}: the code after the pass, {report.pass_ms:.1f} ms ----"
    yield report.code_after.strip("\n")


RENDERINGS["text"] = block
