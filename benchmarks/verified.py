#!/usr/bin/env python3
"""Write ``attnpass/verified.json``: on which hardware each kernel was right in a whole model, from the result lines.

    python benchmarks/verified.py

The support table prints it. A kernel that is not in it has been checked against its library's contract only.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from attnpass.kernels.registry import registry
from attnpass.kernels.support_table import VERIFIED
from benchmarks.records import RESULTS


def main() -> int:
    """Read every line about models; the newest good one of a kernel and GPU counts."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    lines = [line for path in sorted(RESULTS.glob("models_*.jsonl")) for line in path.read_text().splitlines()]
    for record in sorted(map(json.loads, lines), key=lambda record: str(record["date"])):
        for kernel in record.get("calls", {}).get("kernels", {}) if record["ok"] else ():
            gpu = record["hardware"].get("gpu")
            if gpu and kernel in registry() and kernel != "native":
                library = registry()[kernel].limits.library
                names = (library.name, *library.also)
                version = next((record[name] for name in names if name in record), record["torch"])
                entry = found.setdefault(kernel, {}).setdefault(gpu, {"trained": False})
                entry |= {"date": record["date"][:10], "version": version}
                entry["trained"] |= record["step"] == "train"
    VERIFIED.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    print(f"{len(found)} kernels: {', '.join(sorted(found))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
