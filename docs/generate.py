"""Print the generated parts of the docs from the package's own data.

Run by ``conf.py`` before each build. The pages ``environment``, ``support_table`` and ``why_kept`` include what this
writes, so that a new setting, kernel or rejection code cannot be forgotten there; ``performance`` includes what
``measured`` makes of the committed results, and ``zoo`` its tables.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import measured

import attnpass
from attnpass.cli import main
from attnpass.ir.limits import Code
from attnpass.kernels.hub_module import NAMES, names_of
from attnpass.kernels.support_table import support_rows
from attnpass.settings.conditions import FACTS
from attnpass.settings.config import VARIABLES
from benchmarks.tables import Table

ROOT = Path(__file__).resolve().parent.parent
NOT_IN_TABLE = {"title", "aliases", "library", "softcap"}  # told elsewhere, or the same for all of this release


def write_all(folder: Path) -> None:
    """Write every generated fragment into ``folder``; files that would not change are left alone."""
    folder.mkdir(exist_ok=True)
    fragments = {
        **measured.fragments(),
        "conditions.md": conditions(),
        "environment.md": environment(),
        "support.md": support(),
        "names.md": names(),
        "codes.md": code_table(),
        "kernel_times.md": kernel_times(),
        "explain.md": explained("--shape", "2,24,4096,128", "--machine", "h100"),
    }
    for name, text in fragments.items():
        path = folder / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def environment() -> str:
    """One row per setting."""
    rows = [
        (f"`{v.name}`", f"`{v.option}`", v.meaning, f"`{v.default}`" if v.default else "unset", v.legal)
        for v in VARIABLES
    ]
    return table(("variable", "option of `torch.compile`", "meaning", "default", "values"), rows)


def conditions() -> str:
    """One row per word that a clause of ``ATTNPASS_KERNEL`` may have as a condition."""
    return table(("condition", "holds if"), [(f"`{name}`", fact.meaning) for name, fact in FACTS.items()])


def support() -> str:
    """The rows of ``attnpass kernels``."""
    rows = [row for kernel in attnpass.list_kernels() for row in support_rows(kernel)]
    columns = [column for column in rows[0] if column not in NOT_IN_TABLE]
    head = ["kernel", *columns[1:]]
    cells = [[f"`{row['name']}`", *(_typeset(row[column]) for column in columns[1:])] for row in rows]
    return table(head, cells)


def _typeset(text: str) -> str:
    return text.replace(">=", "≥").replace("<=", "≤")


def kernel_times() -> str:
    """Milliseconds of each kernel on each shape, from the committed results; the fastest exact one is bold."""
    times: dict[str, dict[str, float]] = {}
    kernels: dict[str, None] = {}
    for line in (ROOT / "benchmarks" / "results" / "kernels_h200.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        if record["shape"] != "host":
            kernels[record["kernel"]] = None
            row = times.setdefault(f"{record['shape']} {record['step'].replace('forward', '')}".strip(), {})
            row.update({record["kernel"]: record["ms"]} if "ms" in record else {})
    exact = {kernel.name for kernel in attnpass.list_kernels() if kernel.limits.exact}
    rows = []
    for name, row in times.items():
        best = min(ms for kernel, ms in row.items() if kernel in exact)
        cells = [f"**{row[k]:.3f}**" if row.get(k) == best else f"{row[k]:.3f}" if k in row else "–" for k in kernels]
        rows.append((name, *cells))
    return table(("shape", *(f"`{kernel}`" for kernel in kernels)), rows)


def explained(*arguments: str) -> str:
    """What ``attnpass explain`` prints, behind the command."""
    with redirect_stdout(StringIO()) as printed:
        main(["explain", *arguments])
    return f"```bash\nattnpass explain {' '.join(arguments)}\n```\n\n```text\n{printed.getvalue()}```\n"


def names() -> str:
    """One row per kernel: its name, what it is, the other names that are accepted; and those of the Hub."""
    rows = [(f"`{k.name}`", k.title, ", ".join(f"`{a}`" for a in k.aliases) or "–") for k in attnpass.list_kernels()]
    places = dict.fromkeys(NAMES.values())
    hub = [(f"`{wish}`", "from the Hugging Face Hub", ", ".join(f"`{a}`" for a in names_of(wish))) for wish in places]
    return table(("name", "what it is", "also accepted"), [*rows, *hub])


def codes() -> set[str]:
    """All rejection codes."""
    return {code.value for code in Code}


def code_table() -> str:
    """One row per rejection code, linked to its heading."""
    return table(("code", "meaning"), [(f"[`{code.value}`](#{code.value})", code.meaning) for code in Code])


def check_headings(page: Path) -> None:
    """The page must have one second-level heading for each rejection code, and no other.

    Raises:
        ValueError: with the codes that have no heading, and the headings that are no code.
    """
    headings = set(re.findall(r"^## (\w+)$", page.read_text(encoding="utf-8"), re.MULTILINE))
    if headings != codes():
        missing, extra = sorted(codes() - headings), sorted(headings - codes())
        raise ValueError(f"{page.name}: codes without a heading: {missing}; headings that are no code: {extra}")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    return Table(head, list(rows)).markdown()


if __name__ == "__main__":
    write_all(Path(__file__).resolve().parent / "_generated")
