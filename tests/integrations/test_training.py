"""Training frames of others: they train what they train in eager mode, and attention is rewritten."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import attnpass
from tests.helpers.compiled import decisions
from tests.integrations.page import run
from tests.models.test_generate import llama
from tests.models.tiny_models import VOCAB
from tests.test_distributed import Block

IDS = torch.randint(5, VOCAB, (8, 16), generator=torch.Generator().manual_seed(0))


def assert_trained_alike(model: nn.Module, eager: nn.Module) -> None:
    """The weights are those of eager training, and each attention call was rewritten, with its gradients."""
    for mine, wanted in zip(model.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(mine, wanted, atol=1e-5, rtol=1e-4)
    assert decisions()
    assert all(each.kernel == "native_flash" and each.call.needs_grad for each in decisions())


def step(model: Any, optimizer: torch.optim.Optimizer) -> None:
    model(input_ids=IDS, labels=IDS).loss.backward()
    optimizer.step()


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    """Not Adam, whose first step has the size of no gradient: it makes a rounding error as large as a step."""
    return torch.optim.SGD(model.parameters(), lr=0.1)


def test_trainer(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    from transformers import Trainer, TrainingArguments

    def arguments(**more: Any) -> Any:
        quiet = {"report_to": [], "save_strategy": "no", "disable_tqdm": True}
        few = {"max_steps": 2, "per_device_train_batch_size": 4, "learning_rate": 0.1, "optim": "sgd"}
        return TrainingArguments(str(tmp_path), use_cpu=True, **quiet, **few, **more)

    data = [{"input_ids": row, "labels": row} for row in IDS]
    eager, model = llama(), llama()
    model.load_state_dict(eager.state_dict())
    with pytest.raises(ValueError, match="'ATTNPASS' is not a valid DynamoBackend"):
        Trainer(model, arguments(torch_compile_backend="attnpass"), train_dataset=data).train()
    Trainer(eager, arguments(), train_dataset=data).train()
    names = {"model": model, "arguments": arguments(), "dataset": data, "Trainer": Trainer}
    run("The Trainer of transformers", **names)
    assert_trained_alike(model, eager)


def test_accelerate() -> None:
    accelerate = pytest.importorskip("accelerate")
    with pytest.raises(ValueError, match="'ATTNPASS' is not a valid DynamoBackend"):
        accelerate.Accelerator(dynamo_backend="attnpass", cpu=True)
    eager, model = llama(), llama()
    model.load_state_dict(eager.state_dict())
    names = run("Accelerate", model=model, optimizer=sgd(model), accelerator=accelerate.Accelerator(cpu=True))
    step(names["model"], names["optimizer"])
    step(eager, sgd(eager))
    assert_trained_alike(names["model"], eager)


def test_peft() -> None:
    peft = pytest.importorskip("peft")
    names = run("PEFT", model=llama(), LoraConfig=peft.LoraConfig, get_peft_model=peft.get_peft_model)
    model = names["model"]
    eager = copy.deepcopy(model)
    eager._compiled_call_impl = None
    eager(input_ids=IDS, labels=IDS).loss.backward()
    assert not decisions()
    model(input_ids=IDS, labels=IDS).loss.backward()
    for mine, wanted in zip(model.parameters(), eager.parameters(), strict=True):
        assert (mine.grad is None) == (wanted.grad is None)
        if mine.grad is not None:
            torch.testing.assert_close(mine.grad, wanted.grad, atol=1e-6, rtol=1e-4)
    assert_trained_alike(model, eager)


def test_lightning() -> None:
    lightning = pytest.importorskip("lightning")

    class Module(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.encoder = Block()

        def training_step(self, batch: torch.Tensor, index: int) -> torch.Tensor:
            return self.encoder(batch).square().mean()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return sgd(self)

    def trainer() -> Any:
        off = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
        return lightning.Trainer(max_steps=2, accelerator="cpu", **dict.fromkeys(off, False))

    batches = torch.utils.data.DataLoader(torch.randn(4, 24, 64), batch_size=2)
    eager = Module()
    eager.compile(backend="attnpass")  # as the page says: without effect
    trainer().fit(eager, batches)
    assert not decisions()
    module = Module()
    run("Lightning", module=module, trainer=trainer(), batches=batches)
    assert_trained_alike(module, eager)
    attnpass.clear_reports()
    module = Module()
    run("Lightning", 1, module=module, trainer=trainer(), batches=batches, torch=torch)
    assert_trained_alike(module, eager)
