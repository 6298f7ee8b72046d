"""The generated parts of the page ``performance``: tables of the committed results, and the figures that are there."""

from __future__ import annotations

from pathlib import Path

from benchmarks import ground_tables, roofline, summaries, tables
from benchmarks.labels import PICTURES
from benchmarks.records import Source, newest, provenance
from benchmarks.tables import Table
from benchmarks.zoo import summary as zoo

FIGURES = Path(__file__).resolve().parent / "figures"
H100, H200 = Source(), Source("h200")
NOTHING = "*Nothing of this kind is committed yet.*\n"
SETS = ("models",)
ZOO = {
    "strangers": zoo.strangers,
    "missed": zoo.missed,
    "not_tried": zoo.not_tried,
    "transformers": zoo.transformers,
    "transformers_missed": lambda: zoo.missed(benchmark=zoo.TRANSFORMERS),
}


def fragments() -> dict[str, str]:
    """Text by file name."""
    made = {
        "forms": tables.forms(H100),
        "gains": summaries.gains(H100),
        "models": tables.models(H100),
        "regret": summaries.regret(H100),
        "regret_drawn": summaries.regret(H200),
        "ground_calls": ground_tables.ground("masks", "padding", "softcap"),
        "ground_models": ground_tables.ground("bias", "regional", "written"),
        "first_call": ground_tables.first_calls(),
        "tuning": summaries.tuning(H100),
        "padding": summaries.padding(H100),
        "decoding": tables.decoding(H100),
        "steps": tables.steps(H200),
        "diffusion": tables.diffusion(H200),
        "no_gain": tables.no_gain(H100),
        "pass": tables.costs_of_the_pass(H100),
        "host": tables.host(H100),
        "limits": roofline.table(SETS, best=True, source=H100),
    }
    return {
        **{f"measured_{name}.md": _or_nothing(table) for name, table in made.items()},
        **{f"figure_{name}.md": figure(name, alt) for name, alt in PICTURES.items()},
        "ceilings.md": ceilings(H100),
        "zoo_sentence.md": zoo.sentence(),
        **{f"zoo_{name}.md": _or_nothing(make()) for name, make in ZOO.items()},
    }


def figure(name: str, alt: str, folder: Path = FIGURES) -> str:
    """The picture for light pages and the one for dark pages: furo shows one of them."""
    files = {theme: f"{name}_{H100.suffix}_{theme}.svg" for theme in ("light", "dark")}
    if not all((folder / file).exists() for file in files.values()):
        return NOTHING
    lines = (f"```{{image}} figures/{file}\n:class: only-{theme}\n:alt: {alt}\n```\n" for theme, file in files.items())
    return f"````{{container}} figure-box\n{chr(10).join(lines)}````\n"  # it scrolls where it does not fit


def ceilings(source: Source) -> str:
    """What the chip was seen to do, in a sentence."""
    limit = roofline.ceilings(source)
    if limit is None:
        return "*The ceilings of the H100 were not measured by this script yet, so the percentages are missing.*\n"
    told = provenance(newest(source.read("ceilings")).values())
    return f"Measured: **{limit.tflops:.0f} TFLOP/s** and **{limit.gbs:.0f} GB/s** ({told}).\n"


def _or_nothing(table: Table) -> str:
    return table.markdown() if table.rows else NOTHING
