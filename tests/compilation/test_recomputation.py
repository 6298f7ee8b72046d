"""Checkpoints, memory budgets and FLOP counters know our ops as they know PyTorch's attention."""

from __future__ import annotations

import doctest
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch._functorch import config, partitioners
from torch._ops import OpOverload
from torch.fx import GraphModule
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

import attnpass
from attnpass.compilation import recomputation
from attnpass.emit import ops
from attnpass.kernels.flash2 import FLASH_ATTN, Flash2
from attnpass.kernels.registry import _registry, register, registry
from tests.helpers.compiled import assert_near, kernels_used, qkv, run
from tests.standins import flash_attn_2, pretend_all

S = F.scaled_dot_product_attention
aten = torch.ops.aten
CPU_FLASH = str(aten._scaled_dot_product_flash_attention_for_cpu.default)


@pytest.fixture
def flash2(monkeypatch: pytest.MonkeyPatch) -> None:
    """flash2 runs here, through a stand-in of its library."""
    monkeypatch.setenv("ATTNPASS_PROBE", "0")
    flash_attn_2.install(monkeypatch)
    pretend_all(monkeypatch, "h100", {FLASH_ATTN: "2.8.3"})


class Graphs:
    """A compiler that keeps the names of what forward and backward call."""

    def __init__(self) -> None:
        self.made: list[list[str]] = []
        self.backend = aot_autograd(
            fw_compiler=self._compile, partition_fn=partitioners.min_cut_rematerialization_partition
        )

    def _compile(self, gm: GraphModule, _: Any) -> Callable[..., Any]:
        from functorch.compile import make_boxed_func

        calls = [node for node in gm.graph.nodes if node.op == "call_function"]
        # an op of random numbers that is replayed is an argument of what replays it
        self.made.append([str(op) for call in calls for op in (call.target, *call.args) if isinstance(op, OpOverload)])
        return make_boxed_func(gm.forward)

    @property
    def backward(self) -> list[str]:
        return self.made[-1]


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Graphs:
    made = Graphs()
    known = torch._dynamo.backends.registry
    made.backend._tags = ()
    monkeypatch.setitem(known._BACKENDS, "graphs", None)
    monkeypatch.setitem(known._COMPILER_FNS, "graphs", made.backend)
    return made


def layers(x: Tensor, weight: Tensor, *, dropout_p: float = 0.0, depth: int = 2) -> Tensor:
    """Some layers that are nothing but a projection and attention."""
    for _ in range(depth):
        q = (x @ weight).unflatten(2, (4, 16)).transpose(1, 2)
        x = S(q, q, q, is_causal=True, dropout_p=dropout_p).transpose(1, 2).flatten(2)
    return x.cos()


def trained(model: Callable[..., Tensor], kernel: str, compiler: str = "graphs") -> tuple[Tensor, list[Tensor]]:
    """The output of a step of ``model`` compiled with ``kernel``, and the gradients."""
    torch.manual_seed(0)
    x = torch.randn(2, 32, 64, requires_grad=True, dtype=torch.bfloat16)
    weight = (torch.randn(64, 64, dtype=torch.bfloat16) / 8).requires_grad_()
    out = run(model, x, weight, kernel=kernel, compiler=compiler)
    assert set(kernels_used()) == {kernel}
    return out, list(torch.autograd.grad(out, (x, weight), torch.ones_like(out)))


def saved(x: Tensor, weight: Tensor) -> Any:
    saving = partial(create_selective_checkpoint_contexts, attnpass.ops_to_save())
    return checkpoint(layers, x, weight, use_reentrant=False, context_fn=saving)


def recomputed(x: Tensor, weight: Tensor) -> Any:
    return checkpoint(layers, x, weight, use_reentrant=False)


class TestSelectiveCheckpoints:
    def test_a_librarys_op_is_not_computed_again(self, flash2: None, graphs: Graphs) -> None:
        op = "attnpass.flash2_train.default"
        wanted = trained(recomputed, "flash2")
        assert graphs.backward.count(op) == 2
        projections = graphs.backward.count("aten.mm.default")
        got = trained(saved, "flash2")
        assert graphs.backward.count(op) == 0
        assert graphs.backward.count("aten.mm.default") == projections  # these are
        assert torch.equal(got[0], wanted[0]) and all(map(torch.equal, got[1], wanted[1]))

    def test_dropout_is_replayed_or_saved(self, flash2: None, graphs: Graphs) -> None:
        """What is marked as to be kept outside of checkpoints is still theirs inside."""
        found = []
        for context in ({}, {"context_fn": partial(create_selective_checkpoint_contexts, attnpass.ops_to_save())}):

            def model(x: Tensor, weight: Tensor, context: Any = context) -> Any:
                return checkpoint(partial(layers, dropout_p=0.5), x, weight, use_reentrant=False, **context)

            found.append(trained(model, "flash2"))
            assert graphs.backward.count("attnpass.flash2_train.default") == (0 if context else 2)
        (one, grads), (two, others) = found
        assert torch.equal(one, two) and all(map(torch.equal, grads, others))

    def test_pytorchs_op_is_not_computed_again(self, graphs: Graphs) -> None:
        got = trained(saved, "native_flash")
        assert graphs.made[-2].count(CPU_FLASH) == 2 and graphs.backward.count(CPU_FLASH) == 0
        wanted = trained(layers, "native_flash")
        assert all(map(torch.equal, got[1], wanted[1]))

    def test_pytorchs_own_list_is_enough_for_pytorchs_kernels(self) -> None:
        """Training with cuDNN is PyTorch's op, where checkpoints see it; only its backward is ours."""
        seen = []

        class Watch(TorchDispatchMode):
            def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                seen.append(str(op))
                return op(*args, **(kwargs or {}))

        def attention(q: Tensor, k: Tensor) -> Any:
            return torch.ops.attnpass.cudnn_attention(q, k, k, None, True, 0.2)[0]

        cudnn = aten._scaled_dot_product_cudnn_attention.default
        q, k = (x.detach().to("meta").requires_grad_() for x in qkv(Hkv=2)[:2])
        for listed, times in (([cudnn], 1), ([aten.mm.default], 2)):
            context = partial(create_selective_checkpoint_contexts, listed)
            seen.clear()
            with Watch():
                checkpoint(attention, q, k, use_reentrant=False, context_fn=context).sum().backward()
            assert (seen.count(str(cudnn)), seen.count("attnpass.cudnn_attention_backward.default")) == (times, 1)
            assert q.grad is not None and q.grad.stride() == q.stride()

    def test_the_list_has_the_forward_of_every_kernel_and_nothing_else(self) -> None:
        listed = attnpass.ops_to_save()
        assert len(listed) == len(set(listed))
        assert torch.ops.higher_order.flex_attention in listed
        for name in ("flash", "efficient", "cudnn"):
            assert getattr(aten, f"_scaled_dot_product_{name}_attention").default in listed
        ours = {op for op in listed if getattr(op, "namespace", "") == "attnpass"}
        assert ours == {op for op in ops.attention_ops() if not str(op).endswith("_backward.default")}
        create_selective_checkpoint_contexts(listed)

    def test_the_example_of_the_docs(self) -> None:
        assert doctest.testmod(recomputation) == (0, 6)

    def test_somebody_elses_kernel(self) -> None:
        class Theirs(Flash2):
            name = "theirs"
            aliases = ()
            expensive = (aten.bmm.default,)

        register(Theirs())
        try:
            assert aten.bmm.default in attnpass.ops_to_save()
        finally:
            del _registry["theirs"]
        assert aten.bmm.default not in attnpass.ops_to_save()


class TestMemoryBudgets:
    @pytest.mark.parametrize("budget", (1.0, 0.5))
    def test_attention_is_kept_where_there_is_room(self, budget: float, flash2: None, graphs: Graphs) -> None:
        wanted = trained(layers, "flash2")
        with config.patch(activation_memory_budget=budget):
            got = trained(layers, "flash2")
        assert graphs.backward.count("attnpass.flash2_train.default") == 0
        assert torch.equal(got[0], wanted[0]) and all(map(torch.equal, got[1], wanted[1]))

    def test_and_computed_again_where_there_is_none(self, flash2: None, graphs: Graphs) -> None:
        with config.patch(activation_memory_budget=0.0):
            trained(layers, "flash2")
        assert graphs.backward.count("attnpass.flash2_train.default") == 2

    def test_a_cheap_op_goes_first(self, flash2: None, graphs: Graphs) -> None:
        """Of long sequences attention costs more than the projection, which is as large; so the latter is not kept."""

        def model(x: Tensor, weight: Tensor) -> Tensor:
            return layers(x.repeat(1, 16, 1), weight, depth=1)

        with config.patch(activation_memory_budget=0.45):
            trained(model, "flash2")
        assert "attnpass.flash2_train.default" not in graphs.backward
        assert graphs.backward.count("aten.mm.default") == 3

    @pytest.mark.parametrize("compiler", (pytest.param("inductor", marks=pytest.mark.slow), "aot_eager", "graphs"))
    @pytest.mark.parametrize("kernel", ("native_flash", "native_math"))
    def test_half_a_budget_is_right(self, kernel: str, compiler: str, graphs: Graphs) -> None:
        with config.patch(activation_memory_budget=0.5):
            got = trained(layers, kernel, compiler)
        wanted = trained(layers, kernel)
        for one, right in zip((got[0], *got[1]), (wanted[0], *wanted[1]), strict=True):
            assert_near(one, right, 32)

    @pytest.mark.parametrize("budget", (1.0, 0.5, 0.1, 0.0))
    def test_the_backward_drops_what_the_forward_dropped(self, budget: float, flash2: None, graphs: Graphs) -> None:
        """PyTorch's partitioner would draw other numbers in the backward, and the gradients would be wrong."""
        model = partial(layers, dropout_p=0.5)
        wanted = trained(model, "flash2")
        with config.patch(activation_memory_budget=budget):
            got = trained(model, "flash2")
        assert torch.equal(got[0], wanted[0])
        assert all(map(torch.equal, got[1], wanted[1]))

    @pytest.mark.parametrize("compiler", ("graphs", "inductor"))
    @pytest.mark.parametrize("budget", (1.0, 0.1, 0.0))
    def test_and_what_pytorchs_composite_dropped(self, budget: float, compiler: str, graphs: Graphs) -> None:
        q, k, _ = qkv(1, 2, 64, 64, bshd=False, grad=True, dtype=torch.float32)
        v = torch.eye(64).repeat(1, 2, 1, 1).requires_grad_()
        with config.patch(activation_memory_budget=budget):
            out = run(lambda q, k, v: S(q @ k, k, v, dropout_p=0.5), q, k, v, kernel="native_math", compiler=compiler)
            weight = torch.randn_like(out)
            (grad,) = torch.autograd.grad(out, v, weight)
        assert kernels_used() == ["native_math"]
        assert_near(grad, out.detach().transpose(2, 3) @ weight)

    @pytest.mark.skipif(not hasattr(torch.autograd.graph, "region_activation_memory_budget"), reason="since 2.13")
    @pytest.mark.parametrize("budget", (0.5, 0.0))
    def test_the_budget_of_a_region(self, budget: float, flash2: None, graphs: Graphs) -> None:
        def model(x: Tensor, weight: Tensor) -> Tensor:
            with torch.autograd.graph.region_activation_memory_budget(budget):
                return layers(x, weight, dropout_p=0.5)

        got, wanted = trained(model, "flash2"), trained(partial(layers, dropout_p=0.5), "flash2")
        assert torch.equal(got[0], wanted[0]) and all(map(torch.equal, got[1], wanted[1]))

    def test_others_graphs_are_partitioned_as_ever(self, flash2: None, graphs: Graphs) -> None:
        trained(layers, "flash2")
        trained(layers, "flash2")
        found = partitioners.get_default_op_list()
        assert not found.compute_intensive_ops & {op.overloadpacket for op in ops.attention_ops()}
        with recomputation.attention_is_expensive(GraphModule(torch.nn.Module(), torch.fx.Graph())):
            inside = partitioners.get_default_op_list().compute_intensive_ops
        assert inside > found.compute_intensive_ops
        assert all(isinstance(op, (torch._ops.OpOverloadPacket)) for op in inside)
        assert partitioners.get_default_op_list() == found

    def test_a_partitioner_that_knows_no_such_list(self) -> None:
        assert recomputation._lengthened(lambda: None)() is None
        token = recomputation._expensive.set((aten.bmm,))
        assert recomputation._lengthened(lambda: "another form")() == "another form"
        recomputation._expensive.reset(token)

    def test_a_compiler_that_fails_leaves_nothing_behind(self) -> None:
        with pytest.raises(ZeroDivisionError), recomputation.attention_is_expensive(GraphModule({}, torch.fx.Graph())):
            raise ZeroDivisionError
        assert recomputation._expensive.get() == ()


@pytest.mark.parametrize("op", ops.attention_ops(), ids=lambda op: op._schema.name.partition("::")[2])
def test_an_op_may_be_computed_again(op: OpOverload) -> None:
    """It changes nothing, and if it can drop out, it says so: checkpoints replay the random numbers of such ops."""
    schema = op._schema
    assert not schema.is_mutable
    assert all(each.alias_info is None for each in (*schema.arguments, *schema.returns))
    names = [argument.name for argument in schema.arguments]
    draws = "dropout_p" in names and names[0] != "grad"  # a backward is told what was drawn
    assert (torch.Tag.nondeterministic_seeded in op.tags) == draws


def test_every_kernel_that_drops_out_says_so() -> None:
    for kernel in registry().values():
        for op in kernel.expensive:
            if isinstance(op, OpOverload) and "for_cpu" not in str(op):
                assert torch.Tag.nondeterministic_seeded in op.tags


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
