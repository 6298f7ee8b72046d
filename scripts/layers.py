"""Which way the arrows run: a room imports only from rooms below it, and rooms of one level know nothing of each other.

``make check`` runs this file. A room is a folder of `attnpass/`, or a file beside the folders.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "attnpass"
FILES_BESIDE = 8  # files beside the folders, at most
LEVELS = (  # from the top to the ground
    ("__main__",),
    ("cli",),
    ("testing", "__init__"),
    ("backend", "offline"),
    ("pipeline", "compilation"),
    ("trials",),
    ("select", "apply", "plugin"),
    ("understand", "kernels", "report"),
    ("find", "settings", "emit"),
    ("ir",),
    ("index",),
    ("graph", "machine", "errors", "version"),
)
LEVEL = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}


def main() -> int:
    """Print each import that runs up or across; the exit status says whether there was one."""
    found = [text for path in sorted(PACKAGE.rglob("*.py")) for text in _wrong(path)]
    beside = sorted(path.name for path in PACKAGE.glob("*.py"))
    if len(beside) > FILES_BESIDE:
        found.append(f"attnpass/ holds {len(beside)} files beside its folders, at most {FILES_BESIDE}: {beside}")
    print("\n".join(found) or "layers: ok")
    return 1 if found else 0


def _wrong(path: Path) -> Iterator[str]:
    room = _room(path.relative_to(PACKAGE).parts[0].removesuffix(".py"))
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        for target in _imported(node):
            below = _room(target)
            if room != below and LEVEL[room] >= LEVEL[below]:
                yield f"{path.relative_to(ROOT)}:{node.lineno}: {room} imports {below}, which is not below it"  # type: ignore[attr-defined]


def _imported(node: ast.AST) -> Iterator[str]:
    """The rooms that a statement imports from, also inside functions and for types alone."""
    if isinstance(node, ast.Import):
        for name in node.names:
            if name.name.split(".")[0] == "attnpass":
                yield (*name.name.split("."), "__init__")[1]
    elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "attnpass":
        parts = node.module.split(".")
        yield from [parts[1]] if len(parts) > 1 else [name.name for name in node.names]


def _room(name: str) -> str:
    return name if name in LEVEL else "__init__"


if __name__ == "__main__":
    sys.exit(main())
