"""The table of the zoo of strangers, from the committed lines. No number in it is typed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from benchmarks.records import Record, Source, newest
from benchmarks.tables import Table, measured_on

CPU = Source("cpu")
BENCHMARK, TRANSFORMERS = "zoo_strangers", "zoo_transformers"
RIGHT = {  # what no kernel computes, whatever we read: the sentences that say so, and what they are about
    "so they have to be materialised": "scores or weights that are read elsewhere, or returned",
    "the attention weights are materialised": "scores or weights that are read elsewhere, or returned",
    "does not sum over the keys that the softmax runs over": "heads mixed behind the softmax (talking heads)",
    "makes the scores, and is no product of q and k": "heads mixed before the softmax (talking heads)",
    "changes the attention probabilities between the softmax and the product with V": "weights changed behind it",
    "`linear` changes the scores": "heads mixed before the softmax (talking heads)",
    "`conv2d` changes the scores": "heads mixed before the softmax (talking heads)",
    "the softmax does not run over the keys": "a softmax over another axis (slots, features)",
    "not the attention of any kernel": "exponentials or norms that are no softmax (random features, softmax in parts)",
    "only a division by their sum may read the product of exponentials and V": "a softmax in parts",
    "divides by something other than the sum of the exponentials": "a softmax in parts",
}
NO_SOFTMAX = "between two batched matrix products"  # such a sentence need not be about a call
GOOD_NUMBERS = "as eager's"


@dataclass(slots=True)
class Tally:
    """The calls of a package: what became of them."""

    models: int = 0
    calls: int = 0
    not_captured: int = 0
    found: int = 0
    rewritten: int = 0
    left: int = 0
    missed: int = 0
    wrong: int = 0
    sentences: dict[str, int] = field(default_factory=dict)

    def add(self, record: Record) -> None:
        """One model. A call that Dynamo leaves to eager code reaches nobody; it is no call of a graph."""
        eager, found = record["eager"], min(record["found"], record["eager"])
        left = min(sum(count for reason, count in record["near_misses"].items() if meaning(reason)), eager - found)
        told = sum(count for reason, count in record["near_misses"].items() if NO_SOFTMAX not in reason)
        reached = min(eager, max(record["captured"], found + left, found + told))
        self.models += 1
        self.calls += eager
        self.not_captured += eager - reached
        self.found += found
        self.rewritten += min(record["rewritten"], found)
        self.left += left
        self.missed += reached - found - left
        self.wrong += bool(record["wrong"])
        if reached - found - left:
            for reason, count in record["near_misses"].items():
                if not meaning(reason):
                    self.sentences[reason] = self.sentences.get(reason, 0) + count

    def cells(self) -> list[str]:
        counts = (self.models, self.calls, self.not_captured, self.found, self.rewritten, self.left, self.missed)
        return [*map(str, counts), f"{self.wrong} wrong" if self.wrong else GOOD_NUMBERS]


def meaning(reason: str) -> str:
    """What a sentence is about if it is a reason that no kernel could take away; else ""."""
    return next((about for part, about in RIGHT.items() if part in reason), "")


def records(source: Source = CPU, benchmark: str = BENCHMARK) -> list[Record]:
    """The newest line of each stranger."""
    return list(newest(source.read(benchmark), "package", "what").values())


def tallies(found: Iterable[Record]) -> Mapping[str, Tally]:
    """By package and version, the total last."""
    made: dict[str, Tally] = {}
    total = Tally()
    for record in sorted(found, key=lambda one: str(one["package"])):
        if tried(record) and record["eager"]:
            made.setdefault(f"{record['package']} {record.get('version', '')}", Tally()).add(record)
            total.add(record)
    return {**made, "**all**": total}


def tried(record: Record) -> bool:
    return not record.get("problem")


def strangers(source: Source = CPU) -> Table:
    """One row a package."""
    found = records(source)
    dates = {package: _lines(found, package) for package in {record["package"] for record in found}}
    rows = [
        [name, *tally.cells(), measured_on(*dates.get(name.partition(" ")[0], found)[-1:])]
        for name, tally in tallies(found).items()
        if tally.models
    ]
    head = ("package", "models", "calls", "not captured", "found", "rewritten", "rightly left", "missed", "numbers")
    return Table((*head, "measured"), rows)


def transformers(source: Source = CPU) -> Table:
    """One row for each attention that the model types of transformers can be asked for."""
    found = records(source, TRANSFORMERS)
    rows = []
    for attention in ("sdpa", "eager"):
        some = [record for record in found if str(record["what"]).endswith(f", {attention}")]
        total = tallies(some)["**all**"]
        if total.models:
            rows.append(
                [attention, str(len(some)), str(sum(map(tried, some))), *total.cells(), measured_on(*some[-1:])]
            )
    head = ("attention", "model types", "that run small", "with calls", "calls", "not captured", "found", "rewritten")
    return Table((*head, "rightly left", "missed", "numbers", "measured"), rows)


def missed(source: Source = CPU, benchmark: str = BENCHMARK) -> Table:
    """What a kernel could compute and is left, by its sentence."""
    rows = [
        [name, sentence, str(count)]
        for name, tally in tallies(records(source, benchmark)).items()
        for sentence, count in tally.sentences.items()
        if not name.startswith("**")
    ]
    return Table(("package", "what the report says", "times"), rows)


def not_tried(source: Source = CPU) -> Table:
    """The strangers that could not be tried, and why."""
    rows = [
        [f"{record['package']} {record.get('version', '')}", str(record["what"]), f"`{_short(record)}`"]
        for record in sorted(records(source), key=lambda one: str(one["package"]))
        if not tried(record)
    ]
    return Table(("package", "model", "why not"), rows)


def sentence(source: Source = CPU) -> str:
    """The totals, as the page says them."""
    found = [record for record in records(source) if tried(record)]
    packages = {record["package"] for record in found if record["eager"]}
    total = tallies(found)["**all**"]
    reached = total.calls - total.not_captured
    share = (total.found + total.left) / reached if reached else 0.0
    return (
        f"**{total.models} models of {len(packages)} packages make {total.calls} attention calls. "
        f"Dynamo captures {reached}: {total.found} are found ({total.rewritten} rewritten), "
        f"{total.left} rightly left, {total.missed} missed "
        f"({share:.1%} found or rightly left). Wrong: {total.wrong}.**\n"
    )


def _lines(found: Iterable[Record], package: str) -> list[Record]:
    return [record for record in found if record["package"] == package]


def _short(record: Mapping[str, Any]) -> str:
    text = str(record["problem"])
    return text if len(text) <= 110 else f"{text[:110]}…"
