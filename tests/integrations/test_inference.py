"""Inference frames of others, and a package that runs without attnpass: the results of eager, attention rewritten."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import attnpass
from attnpass.cli import minilm
from tests.helpers.compiled import assert_near, decisions, kernels_used
from tests.integrations.page import run, sections
from tests.models.test_diffusers import assert_as_good_as_eager, output
from tests.models.test_generate import llama, prompts
from tests.models.tiny_diffusers import MODELS
from tests.test_distributed import WIDTH, Block

LENGTHS = {"use_cache": True, "max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}


def test_generate_with_a_compile_config() -> None:
    transformers = pytest.importorskip("transformers")

    class OnACPU(transformers.CompileConfig):  # type: ignore[misc, name-defined]
        """What the page says of a CPU."""

        def __init__(self, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self._compile_all_devices = True

    model, given = llama(), {**prompts(), **LENGTHS}
    run("generate", CompileConfig=transformers.CompileConfig, model=model, prompts=given)
    assert not decisions()
    got: list[torch.Tensor] = []
    kept = model.generate
    model.generate = lambda **kwargs: got.append(kept(**kwargs))
    run("generate", CompileConfig=OnACPU, model=model, prompts=given)
    assert set(kernels_used()) == {"native_flash"}
    assert torch.equal(got[0], kept(**given, cache_implementation="static"))


def test_generate_with_a_compiled_forward() -> None:
    pytest.importorskip("transformers")
    model, given = llama(), {**prompts(), **LENGTHS}
    wanted = model.generate(**given)
    run("generate", 1, torch=torch, model=model, prompts=given)
    assert torch.equal(model.generate(**given), wanted)
    assert set(kernels_used()) == {"native_flash"}


def pipeline() -> Any:
    """A class to picture, two steps, two layers."""
    import diffusers

    torch.manual_seed(0)
    sizes = {"sample_size": 8, "patch_size": 4, "in_channels": 4, "out_channels": 8}
    heads = {"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 8}
    vae = diffusers.AutoencoderKL(block_out_channels=(8,), norm_num_groups=4)
    pipe = diffusers.DiTPipeline(
        diffusers.DiTTransformer2DModel(**sizes, **heads).eval(), vae.eval(), diffusers.DDIMScheduler()
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_a_pipeline(monkeypatch: pytest.MonkeyPatch) -> None:
    """``aot_eager`` itself cannot run a decoder's group norm (PyTorch 2.13), so no AOTAutograd here."""
    pytest.importorskip("diffusers")
    monkeypatch.setenv("ATTNPASS_COMPILER", "eager")
    pipe = pipeline()

    def request() -> dict[str, Any]:
        start = torch.Generator().manual_seed(0)
        return {"class_labels": [1], "num_inference_steps": 2, "generator": start, "output_type": "np"}

    wanted = pipe(**request()).images[0]
    pipe.vae.compile(backend="attnpass")  # as the page says: without effect
    pipe(**request())
    assert not decisions()
    got = run("Pipelines of diffusers", pipe=pipe, request=request())["image"]
    assert_near(torch.from_numpy(got), torch.from_numpy(wanted), steps=64)  # 64: two passes and a decoder
    assert kernels_used() == ["native_flash"] * 3


def test_repeated_blocks() -> None:
    pytest.importorskip("diffusers")
    model, inputs = MODELS["wan"].make()
    run("Pipelines of diffusers", 1, transformer=model)
    got = output(model, inputs)
    assert set(kernels_used()) == {"native_flash"}
    assert_as_good_as_eager(got, MODELS["wan"].make()[0], inputs)


def test_sentence_transformers() -> None:
    frame = pytest.importorskip("sentence_transformers")
    folder = Path(pytest.importorskip(minilm.PACKAGE).__file__).parent / "model"
    model = frame.SentenceTransformer(str(folder), device="cpu")
    sentences = list(minilm.SENTENCES[:3])
    wanted = torch.from_numpy(model.encode(sentences))
    got = run("sentence-transformers", model=model, sentences=sentences)["embeddings"]
    assert_near(torch.from_numpy(got), wanted)
    assert set(kernels_used()) == {"native_flash"}


def test_a_process_without_attnpass(tmp_path: Path) -> None:
    model, inputs, path = Block().eval(), (torch.randn(2, 24, WIDTH),), str(tmp_path / "model.pt2")
    names = {"torch": torch, "attnpass": attnpass, "model": model, "inputs": inputs, "path": path}
    run("A process without attnpass", **names)
    assert kernels_used() == ["native_flash"]
    torch.save((inputs, model(*inputs).detach()), tmp_path / "wanted.pt")
    block = sections()["A process without attnpass"][1]
    program = f"""
import sys
sys.modules["attnpass"] = None  # importing it fails
import torch
inputs, wanted = torch.load({str(tmp_path / "wanted.pt")!r})
path = {path!r}
{block}
torch.testing.assert_close(output, wanted)
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=tmp_path)
