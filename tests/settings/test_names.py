"""Names of kernels: those of other programs, mistyped ones, and where a wrong one is said to stand."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule

import attnpass
from attnpass.errors import ConfigError, ProgramError, UnknownKernelError
from attnpass.kernels.hub_module import NAMES, Place, names_of, wish_of
from attnpass.kernels.registry import registry, registry_for
from attnpass.report import log
from attnpass.select.wishes import resolve_policy, with_hint
from attnpass.settings.config import HINT, Config, unknown_variables
from attnpass.settings.policy import Policy, parse
from attnpass.testing import sdpa_graph
from tests.helpers.compiled import kernels_used, qkv, run

S = F.scaled_dot_product_attention
DIFFUSERS = {
    "flash": "flash2",
    "flash_varlen": "flash2",
    "_flash_3": "flash3",
    "_flash_varlen_3": "flash3",
    "aiter_fa2_hub": "aiter",
    "flex": "flex",
    "native": "native",
    "_native_cudnn": "native_cudnn",
    "_native_efficient": "native_efficient",
    "_native_flash": "native_flash",
    "_native_math": "native_math",
    "_native_npu": "npu",
    "_native_xla": "xla",
    "sage": "sage",
    "sage_varlen": "sage",
    "sage_blackwell_hub": "sage3",
    "_sage_qk_int8_pv_fp8_cuda": "sage_fp8",
    "_sage_qk_int8_pv_fp8_cuda_sm90": "sage_fp8_sm90",
    "_sage_qk_int8_pv_fp16_cuda": "sage_fp16",
    "_sage_qk_int8_pv_fp16_triton": "sage_triton",
    "xformers": "xformers",
    **NAMES,
}
TRANSFORMERS = {
    "sdpa": "native",
    "eager": "native_math",
    "flash_attention_2": "flash2",
    "flash_attention_3": "flash3",
    "flash_attention_4": "flash4",
    "flex_attention": "flex",
    "kernels-community/flash-attn2": "hub:kernels-community/flash-attn2",
    "kernels-community/vllm-flash-attn3@v1.2": "hub:kernels-community/vllm-flash-attn3@v1.2",
}


def meaning(name: str) -> str:
    (found,) = resolve_policy(parse(name), registry_for([name]))
    return found


@pytest.mark.parametrize("name", {**DIFFUSERS, **TRANSFORMERS})
def test_names_of_other_programs(name: str) -> None:
    assert meaning(name) == {**DIFFUSERS, **TRANSFORMERS}[name]


def test_every_name_of_diffusers_is_one_of_ours() -> None:
    dispatch = pytest.importorskip("diffusers.models.attention_dispatch")
    assert {each.value for each in dispatch.AttentionBackendName} == set(DIFFUSERS)
    hub = {each.value: kernel for each, kernel in dispatch._HUB_KERNELS_REGISTRY.items()}
    assert {f"hub:{hub[name].repo_id}@{hub[name].version}" for name in NAMES} == set(NAMES.values())


def test_hub_names() -> None:
    assert set(names_of("hub:kernels-community/flash-attn2@3")) == {
        "kernels-community/flash-attn2@3",
        "flash_hub",
        "flash_varlen_hub",
    }
    assert Place.read(wish_of("flash_hub")) == Place("kernels-community/flash-attn2", None, 3)
    assert [wish_of(name) for name in ("flash3", "a/b/c", "/a/b", "./a", "a/", "hub:a", "hub:a/b:f")] == [""] * 7
    assert wish_of("hub:./a/b/c") == "hub:./a/b/c"
    both = registry_for(["flash_hub", "hub:kernels-community/flash-attn2@3"])
    assert len(both) == len(registry()) + 1


SUGGESTED = {
    "flax": "flex",
    "flash_3": "flash3",
    "Flash-Attention-3": "flash3",
    "flash_attn_2": "flash2",
    "fa4": "flash4",
    "cudnn": "native_cudnn",
    "native_cudn": "native_cudnn",
    "math": "native_math",
    "mem_efficient": "native_efficient",
    "xformer": "xformers",
    "SAGE": "sage",
    "sageattn3": "sage3",
    "flash3-fp8": "flash3_fp8",
    "automatic": "auto",
    "flex-attention": "flex",
}


@pytest.mark.parametrize("wrong", [*SUGGESTED, "flash5", "sage9", "linear", "x", "none", "torch", "ring", "flash3fp4"])
def test_what_was_meant(wrong: str) -> None:
    with pytest.raises(UnknownKernelError) as refused:
        meaning(wrong)
    hint = f", did you mean {SUGGESTED[wrong]}?" if wrong in SUGGESTED else "."
    assert f"ATTNPASS_KERNEL names {wrong!r}, which is not a kernel{hint} Legal names: auto, " in str(refused.value)


def test_legal_names_have_aliases_and_forms_of_the_hub() -> None:
    with pytest.raises(UnknownKernelError) as refused:
        meaning("what")
    for text in ("flash2 (flash, flash_varlen, flash_attention_2)", "native (sdpa)", "hub:org/repo,", "hub:./folder"):
        assert text in str(refused.value)


# Where it stands


@pytest.mark.parametrize("wish", ("flax", "cross=flax; sage"))
def test_a_wrong_name_is_blamed_where_it_was_written(wish: str, monkeypatch: pytest.MonkeyPatch) -> None:
    clause = " in the clause 'cross=flax'" if "=" in wish else ""
    graph = sdpa_graph({}, mask=False)
    for given, origin in (({"attnpass.kernel": wish}, "options['attnpass.kernel']"), (None, "ATTNPASS_KERNEL")):
        monkeypatch.setenv("ATTNPASS_KERNEL", "auto" if given else wish)
        with pytest.raises(UnknownKernelError) as refused:
            attnpass.rewrite(graph, qkv(), options=given)
        assert str(refused.value).startswith(f"choosing a kernel: {origin} names 'flax'{clause}, which is not a kernel")


def test_a_prefix_that_was_forgotten() -> None:
    for options, meant in (({"kernel": "flex"}, "kernel"), ({"backend": "flex"}, "kernel"), ({"strict": 1}, "strict")):
        (key,) = options
        with pytest.raises(Exception, match=f"unknown option {key}, did you mean attnpass.{meant}?") as refused:
            torch.compile(S, backend="attnpass", options=options)(*qkv())
        assert isinstance(refused.value.inner_exception, ConfigError)  # type: ignore[attr-defined]


def test_options_of_another_compiler_are_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setitem(torch._dynamo.backends.registry._BACKENDS, "other", None)

    def other(gm: GraphModule, inputs: list[Tensor], options: dict[str, Any]) -> Any:
        given.update(options)
        return gm.forward

    other._tags = ()  # type: ignore[attr-defined]
    monkeypatch.setitem(torch._dynamo.backends.registry._COMPILER_FNS, "other", other)
    run(S, *qkv(), kernel="native_math", compiler="other", options={"cache": "x"})
    assert given == {"cache": "x"}


def test_a_variable_that_other_programs_would_call_so() -> None:
    for name in ("ATTNPASS_BACKEND", "ATTNPASS_ATTN_BACKEND", "ATTNPASS_KERNELS"):
        (message,) = unknown_variables({name: "flex"})
        assert f"unknown environment variable {name}, did you mean ATTNPASS_KERNEL? Known: " in message
    with pytest.raises(ConfigError, match=r"unknown option attnpass\.backend, did you mean attnpass\.kernel\?"):
        Config.load({"attnpass.backend": "flex"}, {})


@pytest.mark.parametrize("program", (nn.Linear(2, 2), torch.compile(nn.Linear(2, 2)), S), ids=str)
def test_what_can_be_rewritten(program: Any) -> None:
    with pytest.raises(ProgramError, match=r"it is a \w+, needs an ExportedProgram or a GraphModule; torch\.export"):
        attnpass.rewrite(program, qkv())


# Diffusers' variable


def hinted(value: str, **environ: str) -> tuple[Config, str]:
    return with_hint(Config.load({}, {HINT: value, **environ}), registry())


def test_a_hint_is_followed_where_it_harms_nobody() -> None:
    config, said = hinted("_flash_3")
    assert config.kernel == Policy(default=("flash3", "auto")) and config.kernel_origin == HINT
    assert said == f"{HINT} is '_flash_3' and ATTNPASS_KERNEL is unset: read as flash3,auto"
    for value in ("", "native"):
        assert hinted(value) == (Config.load({}, {HINT: value}), "")
    assert hinted("_flash_3", ATTNPASS_KERNEL="auto")[1] == ""


@pytest.mark.parametrize(
    ("value", "why"), (("sage", "approximate"), ("flash_hub", "no kernel"), ("new_one", "no kernel"))
)
def test_a_hint_that_is_not_followed_is_no_error(value: str, why: str) -> None:
    config, said = hinted(value)
    assert config.kernel == Policy() and why in said and "stays with auto" in said


def test_a_hint_in_a_program(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """A missing library is no error; it is said once; and compiled code is compiled anew when it changes."""
    monkeypatch.setattr(log, "_said", set())
    monkeypatch.delenv("ATTNPASS_KERNEL", raising=False)
    compiled = torch.compile(S, backend="attnpass", options={"attnpass.compiler": "aot_eager"})

    def used(hint: str, operands: list[Tensor]) -> str:
        monkeypatch.setenv(HINT, hint)
        compiled(*operands)
        return kernels_used()[-1]

    operands = qkv()
    with caplog.at_level(logging.WARNING, "attnpass"):
        assert used("_native_math", operands) == "native_math"
        assert used("flex", operands) == "flex"
        assert used("flash", operands) == "native_flash"
        assert used("native", operands) == "native_flash"
        assert used("flash", qkv(Sq=20)) == "native_flash"
    said = [record.message for record in caplog.records if HINT in record.message]
    assert len(said) == 3 and len(set(said)) == 3
