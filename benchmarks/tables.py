"""Tables of the committed results, for the docs and the terminal. No number in them is typed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from benchmarks.labels import AUTO, BY_HAND, DIFFUSION, FORMS, INDUCTOR, MODELS, model
from benchmarks.records import Key, Record, Source, has_time, newest, state

HERE = Source()
FORMS_SHAPE = "llama"
FORM = ("form", "compiler", "step")
CACHE_FILLS = (1.0, 0.5, 0.1)
DECODERS = (INDUCTOR, "flex", "flash2", "flash3", "flash_decoding")
NOISE = 1.03  # what is within 3 % is no gain


@dataclass(frozen=True, slots=True)
class Table:
    """A head and rows of cells."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        lines = [self.head, ["---"] * len(self.head), *self.rows]
        return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)

    def print(self) -> None:
        from attnpass.cli.table import print_table

        print_table([dict(zip(self.head, (cell.strip("`*") for cell in row), strict=True)) for row in self.rows])


def forms_of(source: Source, shape: str = FORMS_SHAPE) -> dict[Key, Record]:
    """The newest line of each form, compiler and step in one shape; lines of the first days are of the first shape.

    No other process changes what a call takes of memory: that is of the newest line in which the same kernel ran.
    """
    lines = [line for line in source.read("forms") if line.get("shape", FORMS_SHAPE) == shape]
    memory = newest(map(_without_time, lines), *FORM, "ran")
    return {
        key: {**line, "memory_mib": memory[(*key, line.get("ran"))].get("memory_mib")}
        for key, line in newest(lines, *FORM).items()
    }


def _without_time(line: Record) -> Record:
    return {name: value for name, value in line.items() if name != "ms"}


def shapes_of(source: Source) -> list[str]:
    """The shapes of the forms that have lines."""
    return list(dict.fromkeys(str(line.get("shape", FORMS_SHAPE)) for line in source.read("forms")))


def forms(source: Source = HERE) -> Table:
    """Each form: milliseconds and memory by compiler."""
    found = forms_of(source)
    rows = []
    for form, label in FORMS.items():
        lines = [found.get((form, compiler, "forward")) for compiler in (INDUCTOR, AUTO)]
        ours = lines[1] or {}
        cells = [*map(ms_of, lines), *(_mib(line) for line in lines), ratio(*lines)]
        rows.append([f"`{label}`" if "=" in label or "@" in label else label, *cells, _code(ours), measured_on(*lines)])
    head = ("form", "Inductor, ms", "`auto`, ms", "Inductor, MiB", "`auto`, MiB", "gain", "kernel", "measured")
    return Table(head, rows)


def models(source: Source = HERE) -> Table:
    """Each model and step: milliseconds by compiler."""
    found = newest(source.read("end_to_end"), "model", "compiler", "step")
    rows = []
    for name, step in model_steps(found):
        plain, hand, ours = (found.get((name, compiler, step)) for compiler in (INDUCTOR, BY_HAND, AUTO))
        cells = [ms_of(plain), ms_of(hand) if hand else "–", ms_of(ours), ratio(plain, ours)]
        rows.append([model(name, step), *cells, calls_of(ours or {}), measured_on(plain, ours)])
    head = ("model", "Inductor, ms", "mask out by hand, ms", "`auto`, ms", "gain", "calls", "measured")
    return Table(head, rows)


def no_gain(source: Source = HERE) -> Table:
    """The models and forms that ``auto`` makes no faster than plain Inductor does, slowest first."""
    found: dict[str, tuple[Record, Record]] = {}
    lines = newest(source.read("end_to_end"), "model", "compiler", "step")
    for name, step in model_steps(lines):
        pair = lines.get((name, INDUCTOR, step)), lines.get((name, AUTO, step))
        found |= {model(name, step): pair} if _timed(pair) else {}  # type: ignore[dict-item]
    for shape in shapes_of(source):
        lines = forms_of(source, shape)
        for form, label in FORMS.items():
            pair = lines.get((form, INDUCTOR, "forward")), lines.get((form, AUTO, "forward"))
            found |= {f"form (`{shape}`): {label}": pair} if _timed(pair) else {}  # type: ignore[dict-item]
    slow = sorted((plain["ms"] / ours["ms"], name) for name, (plain, ours) in found.items())
    rows = [_no_gain_row(name, *found[name]) for gain, name in slow if gain < NOISE]
    return Table(("what", "Inductor, ms", "`auto`, ms", "gain", "what `auto` ran", "measured"), rows)


def decoding(source: Source = HERE) -> Table:
    """One query on caches that are full, half full and full to a tenth: microseconds, from `benchmarks.decoding`."""
    lines = [line for line in source.read("decoding") if line["what"] == "calls"]
    found = newest([{**line, "sizes": tuple(line["sizes"])} for line in lines], "sizes", "fill", "kernel")
    rows = []
    for sizes in dict.fromkeys(sizes for sizes, _, _ in found):
        B, _H, _Hkv, _Sq, Sk, D = sizes
        by_kernel = [[found.get((sizes, fill, kernel)) for fill in CACHE_FILLS] for kernel in DECODERS]
        cells = [" / ".join(_microseconds(line, "ms") for line in each) for each in by_kernel]
        limit = " / ".join(_microseconds(line, "limit_ms") for line in by_kernel[0])
        rows.append([f"{B} × {Sk} × {D}", limit, *cells, measured_on(*by_kernel[0])])
    head = ("batch × cache × head dim", "limit", "Inductor", *(f"`{kernel}`" for kernel in DECODERS[1:]), "measured")
    return Table(head, sorted(rows, key=lambda row: [int(part) for part in row[0].split(" × ")]))


def steps(source: Source = HERE) -> Table:
    """Whole steps of 8 layers on caches that are half full, in milliseconds, and tokens a second of `generate`."""
    lines = [{**line, "sizes": tuple(line["sizes"])} for line in source.read("decoding") if line["what"] != "calls"]
    found = newest(lines, "what", "sizes", "kernel")
    rows = []
    for what, sizes in sorted({(what, sizes) for what, sizes, _ in found}, reverse=True):
        field = "ms" if what == "steps" else "tokens_a_second"
        there = [found.get((what, sizes, kernel)) for kernel in (INDUCTOR, "native_cudnn", "flash3", AUTO)]
        cells = [f"{line[field]:.{3 if field == 'ms' else 0}f}" if line else "–" for line in there]
        plain, ours = (line[field] if line else 0.0 for line in (there[0], there[3]))
        gain = (plain / ours if field == "ms" else ours / plain) if plain and ours else 0.0
        title = (
            f"a step, {sizes[0]} × {sizes[4]} × {sizes[5]}, ms"
            if what == "steps"
            else f"`generate`, {sizes[0]} prompts of {sizes[1]}, {sizes[2]} more, tokens a second"
        )
        rows.append([title, *cells, f"{gain:.2f}×", measured_on(there[0], there[3])])
    return Table(("what", "Inductor", "`native_cudnn`", "`flash3`", "`auto`", "gain", "measured"), rows)


def diffusion(source: Source = HERE) -> Table:
    """Diffusers' models: what each compiler gains over the Inductor that was timed in turns with it."""
    lines = [{**line, "libraries": "flash-attn" in line, "ok": "ms" in line} for line in source.read("diffusion")]
    found = newest(lines, "model", "way", "compiler", "libraries")
    rows = []
    for name, way in dict.fromkeys((name, way) for name, way, _, _ in found):
        plain, alone = (found.get((name, way, INDUCTOR, libraries)) for libraries in (True, False))
        bare, ours, rough = (
            found.get((name, way, *key)) for key in (("auto_pytorch_only", False), ("auto", True), ("flash3_fp8", True))
        )
        gains = [ratio(plain_, line) for plain_, line in ((alone, bare), (plain, ours), (plain, rough))]
        errors = " → ".join(_percent(line) for line in (plain or alone, rough))
        title = f"{DIFFUSION[name]}, {'block by block' if way == 'blocks' else 'whole'}"
        rows.append([title, ms_of(alone), *gains, errors, measured_on(alone, ours)])
    order = list(DIFFUSION.values())
    head = ("model", "Inductor, ms", "no library", "with `flash3`", "`flash3_fp8`", "error in bf16 → fp8", "measured")
    return Table(head, sorted(rows, key=lambda row: (order.index(row[0].rpartition(", ")[0]), row[0])))


def _percent(line: Record | None) -> str:
    return "–" if line is None or "relative_to_eager" not in line else f"{100 * line['relative_to_eager']:.2f} %"


def _microseconds(line: Record | None, field: str) -> str:
    if line is None or line.get(field) is None:
        return "–"
    number = line[field] * 1000
    return f"{number:.0f}" if number >= 100 else f"{number:.3g}"


def costs_of_the_pass(source: Source = HERE) -> Table:
    """Time of the pass at compile time, from `benchmarks.overhead`."""
    lines = newest(source.read("overhead"), "benchmark", "kernel").values()
    rows = [
        [f"`{r['kernel']}`", f"{r['pass_ms_a_call']:.2f} ms", f"{100 * r['pass_share']:.2f} %", measured_on(r)]
        for r in lines
        if "pass_ms_a_call" in r
    ]
    return Table(("kernel", "pass, a call", "share of the compilation", "measured"), rows)


def host(source: Source = HERE) -> Table:
    """Host time of one compiled call of a tiny shape, from `benchmarks.kernels`."""
    lines = newest(source.read("kernels"), "kernel", "shape").items()
    fields = ("inductor_us", "compiled_us", "compiled_library_us")
    rows = [
        [f"`{kernel}`", *(f"{r[field]:.0f}" if field in r else "–" for field in fields), *_more(r), measured_on(r)]
        for (kernel, shape), r in lines
        if shape == "host" and r["ok"]
    ]
    head = (
        "kernel",
        "plain Inductor, µs",
        "attnpass, µs",
        "library in place of our op, µs",
        "more",
        "more, alone",
        "measured",
    )
    return Table(head, rows)


def _more(record: Record) -> Iterator[str]:
    """What our op adds to the library's function: in compiled code, and where each is called alone."""
    for ours, library in (("compiled_us", "compiled_library_us"), ("op_us", "library_us")):
        yield f"{record[ours] - record[library]:+.0f}" if {ours, library} <= record.keys() else "–"


def model_steps(found: Iterable[Key]) -> Iterator[tuple[str, str]]:
    """Models and steps that have lines, in the order of `MODELS`."""
    there = dict.fromkeys((name, step) for name, _, step in found)
    known = {name: place for place, name in enumerate(MODELS)}
    yield from sorted(there, key=lambda pair: (known.get(pair[0], len(known)), pair[1]))


def _timed(pair: tuple[Record | None, Record | None]) -> bool:
    return not any(map(state, pair))


def _no_gain_row(name: str, plain: Record, ours: Record) -> list[str]:
    ran = calls_of(ours) if "calls" in ours else _code(ours)
    return [name, ms_of(plain), ms_of(ours), ratio(plain, ours), ran, measured_on(plain, ours)]


def ms_of(record: Record | None) -> str:
    if record is None or not has_time(record):
        return state(record)
    text = f"{record['ms']:.3f}" if record["ms"] < 10 else f"{record['ms']:.2f}"
    return f"≤ {text}" if state(record) else text


def _mib(record: Record | None) -> str:
    memory = record.get("memory_mib") if record else None
    return "–" if memory is None else f"{memory:.0f}"


def ratio(plain: Record | None, ours: Record | None) -> str:
    if plain is None or ours is None or state(plain) or not has_time(ours):
        return "–"
    return f"{'≥ ' if state(ours) else ''}{plain['ms'] / ours['ms']:.2f}×"


def _code(record: Record) -> str:
    return f"`{record['ran']}`" if record.get("ran") else "–"


def calls_of(record: Record) -> str:
    return ", ".join(f"{count} × {text}" for text, count in record.get("calls", {}).items()) or "–"


def measured_on(*records: Record | None) -> str:
    """Dates and commits: lines of one row need not be of one day."""
    there = [record for record in records if record]
    return ", ".join(dict.fromkeys(f"{str(r['date'])[:10]} {str(r['commit'])[:7]}" for r in there)) or "–"
