#!/usr/bin/env python3
"""Our TPU op on a CPU: through torch_xla's own Python to JAX's own Pallas kernel, lowered for a TPU and interpreted.

torch_xla's binary wants its own PyTorch, and a TPU to run; its Python does not. Here the binary is replaced: where
torch_xla traces a Pallas kernel for its custom call, JAX lowers the kernel for a TPU, which shows the
``tpu_custom_call`` and its operands, and runs it in interpret mode, and the op gets the result. Not shown: that Mosaic
compiles it, and its speed.

pip install jax==0.7.1
pip install --no-deps torch_xla==2.9.0
python benchmarks/xla_hlo.py
"""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F
from jax.experimental.pallas import tpu as pltpu
from torch import Tensor

import attnpass
from attnpass import testing
from attnpass.machine.known import KNOWN_MACHINES
from attnpass.machine.machine import Machine

LARGEST_ERROR = 2e-5
CALL = re.compile(r"stablehlo\.custom_call @tpu_custom_call\([^)]*\).*? : \((.*?)\) ->")
lowered: list[str] = []  # operand types of each custom call, as JAX lowered it
passed: list[str] = []  # and as torch_xla passes them
results: dict[str, list[np.ndarray[Any, Any]]] = {}

# Sq, Sk, H, Hkv, D, causal, mask, training
CASES = (
    (33, 50, 2, 2, 60, True, "", False),
    (33, 50, 2, 1, 60, False, "bool", False),
    (40, 700, 2, 2, 16, False, "bias", False),
    (600, 600, 1, 1, 16, True, "", False),
    (33, 128, 2, 2, 16, True, "", True),
    (33, 256, 2, 2, 16, False, "bias", True),
    (64, 512, 2, 1, 16, False, "bool", True),
    (1024, 1024, 1, 1, 8, True, "", True),
)


def to_numpy(x: Tensor) -> np.ndarray[Any, Any]:
    array: np.ndarray[Any, Any] = x.detach().numpy()
    return array


def trace_pallas(
    kernel: Callable[..., Any], *args: Any, static_argnums: Any = None, static_argnames: Any = None, **kwargs: Any
) -> tuple[str, list[Tensor]]:
    """In the place of torch_xla's: lower for a TPU, run interpreted, and hand out a name instead of a payload."""
    kwargs.pop("use_cache", None)
    values = [to_numpy(x) if torch.is_tensor(x) else x for x in args]
    jitted = jax.jit(kernel, static_argnums=static_argnums, static_argnames=static_argnames)
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) if isinstance(x, np.ndarray) else x for x in values]
    lowered.append(CALL.findall(jax.export.export(jitted, platforms=["tpu"])(*shapes, **kwargs).mlir_module())[0])
    with pltpu.force_tpu_interpret_mode():
        found = kernel(*[jnp.asarray(x) if isinstance(x, np.ndarray) else x for x in values], **kwargs)
    name = f"payload {len(results)}"
    results[name] = [np.array(x) for x in (found if isinstance(found, (tuple, list)) else [found]) if x is not None]
    return name, [x for x in args if torch.is_tensor(x)]


def custom_call(args: list[Tensor], payload: str, shapes: list[Any], dtypes: list[torch.dtype]) -> list[Tensor]:
    """In the place of the binary's: the interpreted results, in the shapes that torch_xla asks for."""
    passed.append(", ".join(f"tensor<{'x'.join(map(str, x.shape))}xf32>" for x in args))
    outputs = []
    for result, shape, dtype in zip(results[payload], shapes, dtypes, strict=True):
        tensor = torch.from_numpy(result).to(dtype)
        outputs.append(tensor if tensor.ndim == len(shape) else tensor[..., None].expand(shape))  # l and m, by lanes
        assert outputs[-1].shape == torch.Size(shape)
    return outputs


def load_torch_xla() -> None:
    """``torch_xla.experimental.custom_kernel`` from the installed package, the binary and what it needs replaced."""
    spec = importlib.util.find_spec("torch_xla")
    assert spec is not None and spec.origin is not None, "pip install --no-deps torch_xla==2.9.0"
    mesh = type("Mesh", (), {"from_str": staticmethod(lambda text: None)})
    parts: dict[str, dict[str, Any]] = {
        "torch_xla": {"_XLAC": type("_XLAC", (), {"_xla_tpu_custom_call": staticmethod(custom_call)})},
        "torch_xla._internal": {},
        "torch_xla._internal.jax_workarounds": {"requires_jax": lambda f: f, "jax_import_guard": lambda: None},
        "torch_xla.core": {},
        "torch_xla.core.xla_builder": {},
        "torch_xla.core.xla_model": {"XLA_LIB": torch.library.Library("xla", "DEF")},
        "torch_xla.distributed": {},
        "torch_xla.distributed.spmd": {"Mesh": mesh, "get_global_mesh": lambda: None},
        "torch_xla.experimental": {},
    }
    for name, attributes in parts.items():
        module = ModuleType(name)
        module.__dict__.update(attributes, __path__=[])
        sys.modules[name] = module
        if "." in name:
            setattr(sys.modules[name.rpartition(".")[0]], name.rpartition(".")[2], module)
    name = "torch_xla.experimental.custom_kernel"
    where = Path(spec.origin).parent / "experimental" / "custom_kernel.py"
    spec = importlib.util.spec_from_file_location(name, where)
    assert spec is not None and spec.loader is not None
    sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[name])
    sys.modules[name].__dict__["trace_pallas"] = trace_pallas


def as_on_a_tpu(operands: list[Tensor], options: dict[str, Any]) -> Tensor:
    """One SDPA call, rewritten as on a TPU and run."""
    here = replace(KNOWN_MACHINES["tpu"], versions={"torch": str(torch.__version__), "torch_xla": "2.9.0"})
    Machine.look = classmethod(lambda *_, **__: here)  # type: ignore[assignment]
    graph = testing.sdpa_graph(options, mask=len(operands) > 3)
    rewritten, report = attnpass.rewrite(graph, operands, options={"attnpass.kernel": "xla", "attnpass.probe": False})
    (decision,) = report.decisions
    assert decision.kernel == "xla", [str(reason) for reason in decision.rejections("xla")]
    out: Tensor = rewritten(*operands)
    return out


def measure(Sq: int, Sk: int, H: int, Hkv: int, D: int, is_causal: bool, mask: str, trains: bool) -> list[float]:
    """The largest errors of the output and of the gradients of q, k and v, against fp64."""
    operands = [torch.randn(2, heads, S, D).requires_grad_(trains) for heads, S in ((H, Sq), (Hkv, Sk), (Hkv, Sk))]
    if mask:
        seen = torch.rand(Sq, Sk) > 0.3
        seen[3], seen[5, :-9] = False, False
        operands.append(seen if mask == "bool" else torch.randn(Sq, Sk).masked_fill(~seen, float("-inf")))
    options = {"is_causal": is_causal, "enable_gqa": Hkv != H}
    out = as_on_a_tpu(operands, options)
    exact = [x.detach().double().requires_grad_(trains) if x.is_floating_point() else x for x in operands]
    right = F.scaled_dot_product_attention(*exact, **options)
    pairs = [(out, right)]
    if trains:
        weight = torch.randn_like(out)
        mine = torch.autograd.grad((out * weight).sum(), operands[:3])
        pairs += zip(mine, torch.autograd.grad((right * weight).sum(), exact[:3]), strict=True)
    return [(got.double() - wanted).abs().max().item() for got, wanted in pairs]


def main() -> None:
    """Print one line a case, and below it the operands of its custom calls."""
    load_torch_xla()
    torch.manual_seed(0)
    for case in CASES:
        lowered.clear()
        passed.clear()
        errors = measure(*case)
        Sq, Sk, H, Hkv, D, is_causal, mask, trains = case
        words = [f"Sq{Sq} Sk{Sk} H{H} Hkv{Hkv} D{D}", "causal" if is_causal else "", mask, "training" if trains else ""]
        print(", ".join(filter(None, words)), "| errors", " ".join(f"{error:.1e}" for error in errors))
        assert max(errors) < LARGEST_ERROR
        for kernel, given in zip(lowered, passed, strict=True):
            print(f"    tpu_custom_call({kernel})")
            if kernel != given:  # di of the backward for q: only its first 128 lanes are read
                print(f"    torch_xla passes ({given})")


if __name__ == "__main__":
    main()
