#!/usr/bin/env python3
"""Draw the figures of the README and the docs from the committed result lines, each for light and dark backgrounds.

    pip install matplotlib                          # or "attnpass[benchmarks]"
    python benchmarks/figures.py                    # all of them, of the H100
    python benchmarks/figures.py forms kernels --gpu h200

A figure whose lines are not there is skipped, and its old files are removed: no picture outlives its data.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from matplotlib import rc_context
from matplotlib.figure import Figure

from benchmarks.plots import costs, end_to_end, forms, regret, sage
from benchmarks.plots.style import THEMES, NothingToShowError, Theme, save, settings
from benchmarks.records import GPU, RESULTS, ROOT, Source

FOLDER = ROOT / "docs" / "figures"
FIGURES: dict[str, Callable[[Source, Theme], Figure]] = {
    "forms": forms.draw,
    "end_to_end": end_to_end.draw,
    "kernels_forward": costs.draw_forward,
    "kernels_train": costs.draw_train,
    "regret": regret.draw,
    "sage": sage.draw,
}


def main(arguments: list[str] | None = None) -> int:
    args = _arguments(arguments)
    args.out.mkdir(parents=True, exist_ok=True)
    for name in args.figures:
        paths = {theme: args.out / f"{name}_{args.gpu}_{theme.name}.svg" for theme in THEMES}
        try:
            for theme, path in paths.items():
                with rc_context(settings(theme)):
                    save(FIGURES[name](Source(args.gpu, args.results), theme), path, theme)
        except NothingToShowError as reason:
            for path in paths.values():
                path.unlink(missing_ok=True)
            print(f"{name}: skipped, {reason}")
        else:
            print(f"{name}: {', '.join(f'{p.name} {p.stat().st_size / 1024:.0f} KiB' for p in paths.values())}")
    return 0


def _arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("figures", nargs="*", default=list(FIGURES), help=f"of {', '.join(FIGURES)}; default: all")
    parser.add_argument("--gpu", default=GPU, help="suffix of the result files")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the result files")
    parser.add_argument("--out", type=Path, default=FOLDER)
    args = parser.parse_args(arguments)
    if unknown := set(args.figures) - set(FIGURES):
        parser.error(f"no such figure: {', '.join(sorted(unknown))}")
    return args


if __name__ == "__main__":
    sys.exit(main())
