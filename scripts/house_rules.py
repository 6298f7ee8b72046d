"""House rules that no linter knows. ``make check`` and the pre-commit hook run this file.

- A check never answers a bare ``False``: a refusal is a `Rejection` with the value met and the value wanted.
- ``import attnpass`` loads no kernel library and no heavy optional one: those are imported inside functions.
- Files have at most 400 lines (aim at 250), functions at most 40, a Triton program 100, and no file is ``utils.py``.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "attnpass"
CHECKED = ("attnpass", "benchmarks", "docs", "scripts")
LAZY = {
    "aiter",
    "flash_attn",
    "flash_attn_interface",
    "jinja2",
    "kernels",
    "rich",
    "sageattention",
    "torch_npu",
    "torch_xla",
    "transformers",
    "xformers",
}
CHECKS = {PACKAGE / "ir" / "limits.py", PACKAGE / "select" / "checks.py"}
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 40
MAX_PROGRAM_LINES = 100  # of a GPU's program: what it holds in registers is not handed around

Found = tuple[int, str]


def main() -> int:
    """Print ``file:line: rule`` for each violation; the exit status says whether there was one."""
    found = [f"{path.relative_to(ROOT)}:{line}: {text}" for path in _files() for line, text in _check(path)]
    print("\n".join(found) or "house rules: ok")
    return 1 if found else 0


def _files() -> Iterator[Path]:
    for folder in CHECKED:
        for path in sorted((ROOT / folder).rglob("*.py")):
            if not {"_build", "_generated"} & set(path.parts):
                yield path


def _check(path: Path) -> Iterator[Found]:
    source = path.read_text(encoding="utf-8")
    tree = ast.parse(source, str(path))
    lines = len(source.splitlines())
    if lines > MAX_FILE_LINES:
        yield 1, f"file has {lines} lines, at most {MAX_FILE_LINES}: split it by what its parts know"
    if path.stem in {"utils", "util", "helpers", "misc"}:
        yield 1, "name the file after what it knows"
    yield from _long_functions(tree)
    if path.is_relative_to(PACKAGE):
        yield from _eager_imports(tree.body)
    if path.is_relative_to(PACKAGE / "kernels") or path in CHECKS:
        yield from _bare_refusals(tree)


def _long_functions(tree: ast.Module) -> Iterator[Found]:
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1 - _docstring_lines(node)
            is_program = "triton.jit" in map(ast.unparse, node.decorator_list)
            most = MAX_PROGRAM_LINES if is_program else MAX_FUNCTION_LINES
            if lines > most:
                yield node.lineno, f"{node.name} has {lines} lines, at most {most}"


def _docstring_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    if ast.get_docstring(node, clean=False) is None:
        return 0
    first = node.body[0]
    return (first.end_lineno or first.lineno) - first.lineno + 1


def _eager_imports(body: list[ast.stmt]) -> Iterator[Found]:
    """Imports that run with the module: also those inside if, try, with and class, not those in functions."""
    for node in body:
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module or ""]
        for name in names:
            if name.split(".")[0] in LAZY:
                yield node.lineno, f"{name} is imported with the module: import it in the function that needs it"
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and not _is_type_checking(node):
            for inner in ("body", "orelse", "finalbody", "handlers"):
                yield from _eager_imports(getattr(node, inner, []))


def _is_type_checking(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def _bare_refusals(tree: ast.Module) -> Iterator[Found]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Return) and isinstance(node.value, ast.Constant) and node.value.value is False:
            yield node.lineno, "return False: yield a Rejection with the value met and the value wanted"


if __name__ == "__main__":
    sys.exit(main())
