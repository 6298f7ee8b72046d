"""What is being tried, on a terminal: a bar for each signature, gone when it is done."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any


class Bar:
    """``with Bar("B2 H32 S4096 D128, bf16, causal", 4) as bar: bar.next("flash4")``. Nothing where no terminal is."""

    def __init__(self, what: str, total: int) -> None:
        self._what, self._total = what, total
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Bar:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

            columns = (
                TextColumn("attnpass: {task.description}"),
                BarColumn(20),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
            )
            self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self._bar.start()
            self._task = self._bar.add_task(f"tuning {self._what}", total=self._total)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def next(self, name: str) -> None:
        """``name`` is tried now."""
        if self._bar is not None:
            self._bar.update(self._task, advance=1, description=f"tuning {self._what}: {name}")
