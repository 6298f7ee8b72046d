"""The backend as users meet it: torch.compile's own options, settings that change, caches, failures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._dynamo.utils import counters

import attnpass
from attnpass import backend
from attnpass.compilation.compiler import Downstream
from attnpass.errors import ConfigError
from attnpass.kernels.registry import registry
from attnpass.report import log
from tests.helpers.compiled import NOT_ON_2_9, codes, decisions, kernels_used, run

S = F.scaled_dot_product_attention


def attend(q: Tensor, k: Tensor) -> Tensor:
    return S(q, k, k, is_causal=True) * 2 + 1


def test_found_by_name_without_an_import() -> None:
    code = "import torch; print('attnpass' in torch._dynamo.list_backends())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "True\n"


@pytest.mark.parametrize("kernel", ("auto", "native", "native_flash", "native_math", "reference", "flex"))
def test_through_inductor(kernel: str) -> None:
    q, k = torch.randn(2, 4, 33, 32), torch.randn(2, 4, 40, 32)
    with torch.no_grad():
        torch.testing.assert_close(run(attend, q, k, kernel=kernel, compiler="inductor", fullgraph=True), attend(q, k))
    assert kernels_used() == [{"auto": "native_flash"}.get(kernel, kernel)]


@pytest.mark.parametrize("kernel", ("native_flash", "native_math", "reference"))
def test_training_through_inductor(kernel: str) -> None:
    q, k = torch.randn(2, 4, 33, 32, requires_grad=True), torch.randn(2, 4, 40, 32, requires_grad=True)
    wanted = torch.autograd.grad(attend(q, k).square().sum(), (q, k))
    got = torch.autograd.grad(run(attend, q, k, kernel=kernel, compiler="inductor").square().sum(), (q, k))
    torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("mode", "options", "wanted"),
    [
        (None, {}, False),
        ("default", {}, False),
        ("max-autotune-no-cudagraphs", {}, False),
        ("reduce-overhead", {}, True),
        ("max-autotune", {}, True),
        (None, {"triton.cudagraphs": True}, True),
        ("a mode of tomorrow", {}, False),
    ],
)
def test_what_makes_inductor_record_cuda_graphs(mode: str | None, options: dict[str, bool], wanted: bool) -> None:
    assert Downstream("inductor", mode, options).uses_cuda_graphs is wanted
    assert not Downstream("aot_eager", mode, options).uses_cuda_graphs


@pytest.mark.parametrize("mode", ("default", "reduce-overhead", "max-autotune-no-cudagraphs"))
def test_modes(mode: str) -> None:
    q = torch.randn(1, 2, 16, 16)
    out = torch.compile(attend, backend="attnpass", mode=mode)(q, q)
    torch.testing.assert_close(out, attend(q, q))
    assert kernels_used() == ["native_flash"]
    (machine,) = attnpass.last_report().machines.values()
    assert machine.cuda_graphs is (mode == "reduce-overhead")


def test_inductor_options_beside_ours() -> None:
    q = torch.randn(1, 2, 16, 16)
    options = {"attnpass.kernel": "reference", "epilogue_fusion": True, "max_autotune": False}
    torch.testing.assert_close(torch.compile(attend, backend="attnpass", options=options)(q, q), attend(q, q))
    assert kernels_used() == ["reference"]


@pytest.mark.parametrize("compiler", ("eager", "aot_eager", "aot:eager"))
def test_other_compilers(compiler: str) -> None:
    q = torch.randn(1, 2, 16, 16, requires_grad=True)
    torch.testing.assert_close(run(attend, q, q, compiler=compiler), attend(q, q))
    run(attend, q, q, compiler=compiler).sum().backward()


@pytest.mark.parametrize("kernel", ("native_flash", "native_math", "flex", "auto"))
@NOT_ON_2_9
def test_dynamic_shapes_add_no_recompile(kernel: str) -> None:
    """One static graph, one dynamic graph, whatever the kernel: as with plain Inductor."""
    counters.clear()
    options = {"attnpass.kernel": kernel, "attnpass.compiler": "aot_eager"}
    compiled = torch.compile(attend, backend="attnpass", options=options)
    with torch.no_grad():
        for length in (33, 40, 64, 128, 300, 2):
            q = torch.randn(2, 4, length, 32)
            torch.testing.assert_close(compiled(q, q), attend(q, q))
    assert counters["stats"]["unique_graphs"] == 2


@NOT_ON_2_9
def test_a_marked_dimension_stays_dynamic() -> None:
    q, k = torch.randn(2, 4, 64, 32), torch.randn(2, 4, 64, 32)
    for t in (q, k):
        torch._dynamo.mark_dynamic(t, 2)
    for kernel in ("native_flash", "flex", "native_math"):
        torch._dynamo.reset()
        with torch.no_grad():
            torch.testing.assert_close(run(attend, q, k, kernel=kernel), attend(q, k))
    assert kernels_used() == ["native_flash", "flex", "native_math"]


def test_a_changed_variable_takes_effect_on_the_next_call(monkeypatch: pytest.MonkeyPatch) -> None:
    q = torch.randn(1, 2, 16, 16)
    compiled = torch.compile(attend, backend="attnpass")
    for kernel in ("native_flash", "reference", "native_math", "native_flash"):
        monkeypatch.setenv("ATTNPASS_KERNEL", kernel)
        compiled(q, q)
        compiled(q, q)
    assert kernels_used() == ["native_flash", "reference", "native_math"]  # back to the first: its code is still there


def test_changed_sdpa_switches_take_effect() -> None:
    q = torch.randn(1, 2, 16, 16)
    compiled = torch.compile(attend, backend="attnpass")
    compiled(q, q)
    torch.backends.cuda.enable_flash_sdp(False)
    try:
        compiled(q, q)
    finally:
        torch.backends.cuda.enable_flash_sdp(True)
    assert kernels_used() == ["native_flash", "native"]
    assert codes(decisions()[1], "native_flash") == {"disabled"}


CHILD = """
import json, torch, attnpass
from torch._dynamo.utils import counters
q = torch.randn(2, 4, 33, 32, requires_grad={grad})
def fn(q):
    return torch.nn.functional.scaled_dot_product_attention(q, q, q, is_causal=True)
out = torch.compile(fn, backend="attnpass")(q)
if out.requires_grad:
    out.sum().backward()
cache = {{k: v for name in ("inductor", "aot_autograd") for k, v in counters[name].items() if "cache" in k}}
print(json.dumps([attnpass.last_report().decisions[0].kernel, cache]))
"""


def child(cache: Path, kernel: str, grad: bool) -> tuple[str, dict[str, int]]:
    env = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(cache), "ATTNPASS_KERNEL": kernel}
    out = subprocess.run(
        [sys.executable, "-c", CHILD.format(grad=grad)], env=env, capture_output=True, text=True, check=True
    )
    used, cache_counters = json.loads(out.stdout.splitlines()[-1])
    return used, cache_counters


@pytest.mark.parametrize(
    ("kernel", "grad"), (("native_flash", True), pytest.param("flex", False, marks=pytest.mark.slow))
)
def test_second_process_starts_warm_and_another_kernel_does_not(tmp_path: Path, kernel: str, grad: bool) -> None:
    child(tmp_path, kernel, grad)
    used, cache = child(tmp_path, kernel, grad)
    assert used == kernel
    assert cache["autograd_cache_hit"] == 1
    assert cache["fxgraph_cache_hit"] >= 1
    assert not any("miss" in key or "bypass" in key for key in cache), cache
    used, cache = child(tmp_path, "native_math", grad)
    assert used == "native_math"
    assert cache["autograd_cache_miss"] == 1
    assert "autograd_cache_hit" not in cache


def test_limit_rewrites_the_first_n() -> None:
    q = torch.randn(1, 2, 16, 16)
    out = run(lambda q: attend(attend(attend(q, q), q), q), q, options={"attnpass.limit": 2})
    torch.testing.assert_close(out, attend(attend(attend(q, q), q), q))
    assert kernels_used() == ["native_flash", "native_flash", "native"]
    assert decisions()[2].reason.value == "limit"


def test_strict_refusal_has_every_reason() -> None:
    q = torch.randn(1, 2, 16, 520)
    with pytest.raises(Exception, match="ATTNPASS_STRICT=1 and 1 of 1 calls") as raised:
        run(attend, q, q, kernel="flex", options={"attnpass.strict": True})
    assert isinstance(raised.value.inner_exception, attnpass.AttnpassError)
    assert "flex: head_dim is 520, needs at most 512" in str(raised.value)
    run(attend, q, q, kernel="flex,auto", options={"attnpass.strict": True})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attnpass.kernel": "sage9"}, "names 'sage9', which is not a kernel"),
        ({"attnpass.log": "loud"}, "options['attnpass.log'] is 'loud', needs warning, info or debug"),
        ({"attnpass.kernl": "flex"}, "unknown option attnpass.kernl, did you mean attnpass.kernel?"),
        ({"attnpass.compiler": "gcc"}, "ATTNPASS_COMPILER names 'gcc', which is not a registered backend"),
    ],
)
def test_user_errors_say_what_to_do(options: dict[str, str], message: str) -> None:
    q = torch.randn(1, 2, 16, 16)
    with pytest.raises(Exception) as raised:
        torch.compile(attend, backend="attnpass", options=options)(q, q)
    assert message in str(raised.value)


@pytest.mark.parametrize("name", ("attnpass", "aot:attnpass", "alias", "aot:alias"))
def test_attnpass_is_no_compiler_for_itself(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would hand the graph to itself for ever."""
    alias = partial(partial(backend.attnpass))
    alias._tags = ()  # type: ignore[attr-defined]
    monkeypatch.setitem(torch._dynamo.backends.registry._BACKENDS, "alias", None)
    monkeypatch.setitem(torch._dynamo.backends.registry._COMPILER_FNS, "alias", alias)
    q = torch.randn(1, 2, 16, 16)
    for options in ({"attnpass.compiler": name}, {}):
        monkeypatch.setenv("ATTNPASS_COMPILER", name)
        torch._dynamo.reset()
        with pytest.raises(torch._dynamo.exc.BackendCompilerFailed) as raised:
            torch.compile(attend, backend="attnpass", options=options)(q, q)
        assert isinstance(raised.value.inner_exception, ConfigError)
        assert "compiles nothing itself" in str(raised.value) and "known: alias, aot_eager" in str(raised.value)


def test_unknown_variable_is_said_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("ATTNPASS_KERNELS", "flex")
    log._said.clear()
    q = torch.randn(1, 2, 16, 16)
    run(attend, q, q)
    torch._dynamo.reset()
    run(attend, q, q)
    said = [r.getMessage() for r in caplog.records if "ATTNPASS_KERNELS" in r.getMessage()]
    assert len(said) == 1
    assert "did you mean ATTNPASS_KERNEL?" in said[0]


def test_an_error_of_ours_never_breaks_the_program(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("a bug of ours")

    monkeypatch.setattr(type(registry()["native_flash"]), "emit", broken)
    log._said.clear()
    q = torch.randn(1, 2, 16, 16)
    torch.testing.assert_close(run(attend, q, q), attend(q, q))
    assert attnpass.last_report().error == "ZeroDivisionError: a bug of ours"
    (said,) = [r.getMessage() for r in caplog.records if "a bug of ours" in r.getMessage()]
    assert "the program runs unrewritten" in said
    assert "please report" in said
    torch._dynamo.reset()
    with pytest.raises(Exception, match="ATTNPASS_STRICT=1, so nothing runs"):
        run(attend, q, q, options={"attnpass.strict": True})


def test_the_graph_that_came_in_is_not_changed() -> None:
    seen = {}

    def spy(gm: torch.fx.GraphModule, inputs: list[Tensor]) -> object:
        seen["before"] = gm.print_readable(print_output=False)
        out = backend.attnpass(gm, inputs, options={"attnpass.kernel": "reference", "attnpass.compiler": "eager"})
        seen["after"] = gm.print_readable(print_output=False)
        return out

    q = torch.randn(1, 2, 16, 16)
    torch.compile(attend, backend=spy)(q, q)
    assert seen["before"] == seen["after"]


def test_importing_attnpass_imports_torch_only() -> None:
    heavy = ("rich", "jinja2", "transformers", "flash_attn", "sympy", "torch._dynamo", "torch._inductor")
    code = f"import sys, attnpass; print([m for m in {heavy} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    wanted = subprocess.run(
        [sys.executable, "-c", code.replace(", attnpass", ", torch")], capture_output=True, text=True
    )
    assert out == wanted.stdout


def test_the_name_is_known_where_no_metadata_says_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "NAME", "attnpass_from_a_path")
    backend.make_known()
    x = torch.randn(2)
    assert torch.compile(lambda x: x + 1, backend="attnpass_from_a_path")(x).equal(x + 1)
