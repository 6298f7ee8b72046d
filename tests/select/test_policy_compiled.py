"""Policies as users meet them: torch.compile on the CPU, where each call of a model gets the kernel of its clause."""

from __future__ import annotations

import json
import logging
import re
import runpy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo.exc import BackendCompilerFailed
from torch._dynamo.utils import counters
from torch.utils.checkpoint import checkpoint

import attnpass
from attnpass.report import log
from attnpass.report.pages.graph_page import to_html
from attnpass.report.record import calls_of
from attnpass.report.text import block
from tests.helpers.cli_examples import run as command
from tests.helpers.compiled import NOT_ON_2_9, assert_near, decisions, run

DOCS = Path(__file__).resolve().parents[2] / "docs"
E, H = 64, 2
POLICY = "native_flash; cross=native_math; blocks.0.*=reference; decode=flex"


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.kv, self.o = nn.Linear(E, E), nn.Linear(E, 2 * E), nn.Linear(E, E)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (H, -1)).transpose(1, 2) for t in (self.q(x), *self.kv(c).chunk(2, -1)))
        return self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn, self.cross, self.norm = Attention(), Attention(), nn.LayerNorm(E)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        normed = self.norm(x)
        x = x + self.attn(normed, normed)
        return x + self.cross(self.norm(x), c)


class Decoder(nn.Module):
    def __init__(self, checkpointed: bool = False) -> None:
        super().__init__()
        self.blocks, self.checkpointed = nn.ModuleList(Block() for _ in range(3)), checkpointed

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        for each in self.blocks:
            x = checkpoint(each, x, c, use_reentrant=False) if self.checkpointed else each(x, c)
        return x


X, C, TOKEN = torch.randn(2, 9, E), torch.randn(2, 5, E), torch.randn(2, 1, E)
KERNELS = {
    "blocks.0.attn": "reference",
    "blocks.0.cross": "native_math",
    "blocks.1.attn": "native_flash",
    "blocks.1.cross": "native_math",
    "blocks.2.attn": "native_flash",
    "blocks.2.cross": "native_math",
}


def by_module() -> dict[str, str]:
    return {decision.call.module: decision.kernel for decision in decisions()}


def compiled(policy: Any, model: nn.Module, *args: Tensor, **kwargs: Any) -> Tensor:
    """Compile anew and compare with eager."""
    torch._dynamo.reset()
    attnpass.clear_reports()
    with torch.no_grad():
        out = run(model, *args, kernel=policy, fullgraph=True, **kwargs)
        assert_near(out, model(*args), steps=64)
    return out


@pytest.mark.parametrize("compiler", ("aot_eager", pytest.param("inductor", marks=pytest.mark.slow)))
def test_each_call_gets_the_kernel_of_its_clause(compiler: str) -> None:
    model = Decoder()
    compiled(POLICY, model, X, C, compiler=compiler)
    assert by_module() == KERNELS  # equal calls in different modules are decided apart
    assert {d.call.module: d.clause for d in decisions()}["blocks.0.cross"] == "cross=native_math"
    compiled(POLICY, model, TOKEN, C, compiler=compiler)
    decoding = {"blocks.1.attn": "flex", "blocks.2.attn": "flex"}
    assert by_module() == KERNELS | decoding


def test_a_list_as_an_option_and_a_plain_list() -> None:
    compiled(["native_flash", "cross=native_math"][::-1], Decoder(), X, C)
    assert set(by_module().values()) == {"native_flash", "native_math"}
    compiled(["reference", "native_flash"], Decoder(), X, C)
    assert set(by_module().values()) == {"reference"}
    assert all(not d.clause for d in decisions())


def test_training() -> None:
    model = Decoder()
    wanted = torch.autograd.grad(model(X, C).square().sum(), list(model.parameters()))
    loss = run(model, X, C, kernel="native_math; train&self=native_flash; inference=reference").square().sum()
    for mine, theirs in zip(torch.autograd.grad(loss, list(model.parameters())), wanted, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-3, rtol=1e-3)
    assert set(by_module().values()) == {"native_flash", "native_math"}


def test_nested_graphs() -> None:
    """Modules and kinds are known inside the bodies of checkpoints, and behind them."""
    model = Decoder(checkpointed=True)
    out = run(model, X, C, kernel=POLICY)
    assert_near(out, model(X, C), steps=64)
    assert all(d.call.context.nested_in for d in decisions())
    assert by_module() == KERNELS


@NOT_ON_2_9
def test_dynamic_shapes_add_no_recompile_and_unknown_sizes_skip_the_clause() -> None:
    counters.clear()
    model = Decoder()
    policy = "native_flash; Sk>64=reference; decode=flex; cross&Sq<4096=native_math; head_dim==32&cross=reference"
    options = {"attnpass.kernel": policy, "attnpass.compiler": "aot_eager"}
    call = torch.compile(model, backend="attnpass", options=options, dynamic=True)
    with torch.no_grad():
        for length in (9, 33, 130):
            x, c = torch.randn(2, length, E), torch.randn(2, length + 3, E)
            assert_near(call(x, c), model(x, c), steps=64)
    assert counters["stats"]["unique_graphs"] == 1
    attn, cross = decisions()[:2]
    assert (attn.kernel, cross.kernel) == ("native_flash", "reference")
    assert cross.clause == "head_dim==32&cross=reference"
    assert [text.partition(":")[0] for text in cross.skipped] == ["Sk>64=reference", "cross&Sq<4096=native_math"]
    assert [text.partition(":")[0] for text in attn.skipped] == ["Sk>64=reference"]


def test_strict_is_asked_of_each_clause() -> None:
    """flex takes no head dim above 512: only a call whose own clause has a way out may stay."""
    large = "head_dim>128=flex"
    q = torch.randn(1, 2, 8, 520)

    def attend(q: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, q, q)

    strict = {"attnpass.strict": True}
    with pytest.raises(BackendCompilerFailed, match="StrictError") as refused:
        run(attend, q, kernel=f"auto; {large}", options=strict)
    assert f"ATTNPASS_STRICT=1 and 1 of 1 calls are taken by none of ATTNPASS_KERNEL={large}" in str(refused.value)
    assert f"    by the clause {large!r}" in str(refused.value) and "head_dim is 520" in str(refused.value)
    run(attend, q, kernel=f"flex; {large},native", options=strict)
    compiled(f"flex; {large}", Decoder(), X, C, options=strict)
    with pytest.raises(BackendCompilerFailed, match="StrictError"):
        run(attend, q, kernel="flex; cross=native", options=strict)


def test_errors_at_compile_start() -> None:
    with pytest.raises(
        BackendCompilerFailed, match=r"options\['attnpass.kernel'\] is 'crss=flex': in the clause 'crss=flex': 'crss'"
    ):
        run(Decoder(), X, C, kernel="crss=flex")
    with pytest.raises(BackendCompilerFailed, match="names 'flax' in the clause 'decode=flax', which is not a kernel"):
        run(Decoder(), X, C, kernel="decode=flax")  # although no call here is a decode step
    assert not attnpass.reports()


def test_a_changed_policy_compiles_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    model = torch.compile(Decoder(), backend="attnpass")
    monkeypatch.setenv("ATTNPASS_COMPILER", "aot_eager")
    for policy, kernel in (("cross=reference", "reference"), ("cross=native_math", "native_math")):
        monkeypatch.setenv("ATTNPASS_KERNEL", policy)
        with torch.no_grad():
            model(X, C)
        assert attnpass.last_report().decisions[1].kernel == kernel


def test_the_report_says_which_clause() -> None:
    compiled("native_flash; Sk>4096=flex; cross=native_math; *.crss=reference", Decoder(), X, C)
    report = attnpass.last_report()
    calls = {each["module"]: each for each in calls_of(report.to_dict())}
    assert calls["blocks.0.cross"]["policy"] == "cross=native_math" and calls["blocks.0.cross"]["kind"] == "cross"
    assert (calls["blocks.0.attn"]["policy"], calls["blocks.0.attn"]["reason"]) == ("native_flash", "requested")
    assert report.to_dict()["config"]["clauses"] == ["Sk>4096=flex", "cross=native_math", "*.crss=reference"]
    assert report.to_dict()["unmatched_modules"] == ["*.crss"]
    text = block(report)
    assert "      native_math was asked for by name, by the clause cross=native_math" in text
    assert "      native_flash was asked for by name, by the clause native_flash" in text
    assert text.endswith(
        "  no attention call stands in a module that matches *.crss; modules here: blocks.*.[attn,cross]"
    )
    page = to_html(report)
    assert "Why: native_math was asked for by name, by the clause cross=native_math." in page
    assert "native_flash; Sk&gt;4096=flex; cross=native_math; *.crss=reference" in page
    assert "ATTNPASS_KERNEL: no attention call stands in a module that matches *.crss; modules here:" in page


def test_the_report_says_what_was_skipped() -> None:
    q = torch.randn(1, 2, 8, 32)
    run(lambda q, k: F.scaled_dot_product_attention(q, k, k), q, q + 1, kernel="native_flash; cross=reference")
    told = "skipped the clause cross=reference: the graph does not show where K comes from"
    report = attnpass.last_report()
    assert f"      {told}" in block(report).splitlines() and told in to_html(report)
    assert calls_of(report.to_dict())[0]["policy_skipped"] == [told.removeprefix("skipped the clause ")]


def test_a_module_pattern_without_a_module_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(log, "_globs_said", set())
    with caplog.at_level(logging.WARNING, "attnpass"):
        for _ in range(2):
            compiled("*.crss=reference; *.cross=native_math", Decoder(), X, C)
        compiled("*.cross=native_math", nn.Sequential(nn.Linear(E, E)), X)  # a graph without calls says nothing
    said = [record.message for record in caplog.records if "module that matches" in record.message]
    assert len(said) == 1
    assert said[0].endswith(
        "options['attnpass.kernel']: no attention call stands in a module that matches *.crss; "
        "modules here: blocks.*.[attn,cross]"
    )


def test_the_dry_run_and_the_rewriting_of_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    exported = torch.export.export(Decoder(), (X, C)).module()
    gm, report = attnpass.rewrite(exported, options={"attnpass.kernel": POLICY})
    assert [d.kernel for d in report.decisions] == list(KERNELS.values())
    torch.testing.assert_close(gm(X, C), exported(X, C))
    monkeypatch.setenv("ATTNPASS_KERNEL", POLICY)
    with torch.no_grad():
        (dry,) = attnpass.explain(Decoder(), X, C)
    assert [d.kernel for d in dry.decisions] == list(KERNELS.values())


def test_the_command_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    shape = ["explain", "--shape", "2,24,4096,128", "--kv-shape", "2,24,77,128", "--machine", "h100"]
    policy = ["--kernel", "native_flash; cross=native_cudnn; *.attn=native_math"]
    code, out, _ = command(capsys, *shape, *policy, "--kind", "cross")
    assert code == 0
    assert out[2].endswith("-> native_cudnn: native_cudnn was asked for by name, by the clause cross=native_cudnn")
    code, out, _ = command(capsys, *shape, *policy, "--module", "blocks.0.attn", "--json")
    (call,) = calls_of(json.loads("\n".join(out)))
    assert (call["kernel"], call["policy"]) == ("native_math", "*.attn=native_math")
    code, out, _ = command(capsys, *shape, *policy)
    assert out[3] == "skipped the clause cross=native_cudnn: the graph does not show where K comes from"
    code, _, err = command(capsys, *shape, "--kernel", "crss=flex")
    assert code == 2 and "'crss' is no condition, did you mean cross?" in err[0]
    code, _, err = command(capsys, "demo", "--kernel", "cross=flex")
    assert code == 2 and "needs kernel names without conditions" in err[0]
    (tmp_path / "net.py").write_text("model = None\ninputs = ()\n")
    code, _, err = command(capsys, "explain", str(tmp_path / "net.py"), "--kernel", "native; cross=flax")
    assert code == 2 and "names 'flax' in the clause 'cross=flax'" in err[0]


def test_the_example_in_the_docs_is_what_comes_out(monkeypatch: pytest.MonkeyPatch) -> None:
    page = (DOCS / "choosing_a_kernel.md").read_text(encoding="utf-8")
    (policy,) = re.findall(r'ATTNPASS_KERNEL="(.*)" python policy_model.py', page)
    (wanted,) = re.findall(r"```text\n(attnpass graph 0: .*?)\n```", page, re.DOTALL)
    monkeypatch.chdir(DOCS / "examples")
    example = runpy.run_path("policy_model.py")
    compiled(policy, example["model"], *example["inputs"])
    told = block(replace(attnpass.last_report(), graph=0))
    assert re.sub(r"\(.* ms\)", "", told) == re.sub(r"\(.* ms\)", "", wanted)
