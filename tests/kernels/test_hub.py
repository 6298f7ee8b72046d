"""hub: kernels end to end, from folders in the layout of the package `kernels`: recognised, called, refused."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import attnpass
from attnpass.cli import main
from attnpass.errors import KernelUnavailableError, UnknownKernelError
from attnpass.kernels import hub, hub_module
from attnpass.kernels.hub_module import Place
from attnpass.kernels.registry import _registry, registry_for
from attnpass.machine import library
from attnpass.machine.machine import Machine
from attnpass.testing import sdpa_graph
from attnpass.trials import verify
from tests.helpers.compiled import assert_near, assert_right, codes, decisions, kernels_used, qkv, refused, run
from tests.helpers.emitted import assert_like_brute_force, emitted, window
from tests.standins import hub as standin

S = F.scaled_dot_product_attention
MODULES = {
    "flash2": """
from tests.standins.formula import attention, band

def flash_attn_func(q, k, v, dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0,
                    alibi_slopes=None, deterministic=False, return_attn_probs=False):
    left, right = (None if side < 0 else side for side in window_size)
    return attention(q, k, v, softmax_scale, band(q.shape[1], k.shape[1], left, 0 if causal else right))[0]
""",
    "flash3": "from tests.standins.flash_attn_3 import flash_attn_func",
    "flash4": "from tests.standins.flash_attn_4 import flash_attn_func",
    "sage1": "from tests.standins.sageattention_1 import sageattn",
    "sage": """
from tests.standins.sageattention_2 import _compute

def sageattn(q, k, v, tensor_layout="HND", is_causal=False, sm_scale=None, return_lse=False, **kwargs):
    assert not kwargs
    return _compute(q, k, v, tensor_layout, is_causal, sm_scale, block=64, smooth_k=True)
""",
}


@pytest.fixture(autouse=True)
def h100(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every device is an H100, and the package `kernels` is the stand-in; nothing else is pretended."""
    monkeypatch.setenv("ATTNPASS_PROBE", "0")
    standin.install(monkeypatch)
    monkeypatch.setattr("attnpass.machine.machine._device_facts", lambda *_: ("cuda", "NVIDIA H100", "sm_90"))
    monkeypatch.setattr(library, "version", lambda one: "0.17.2" if one.name == "kernels" else None)
    before = dict(_registry)
    yield
    _registry.clear()
    _registry.update(before)
    hub.hub_kernel.cache_clear()
    hub_module._loaded.clear()


def wish_for(folder: Path, code: str) -> str:
    return f"hub:{standin.write_kernel(folder, code)}"


@pytest.mark.parametrize("family", MODULES)
@pytest.mark.parametrize("bshd", (True, False), ids=("BSHD", "BHSD"))
def test_each_family_is_recognised_and_right(family: str, bshd: bool, tmp_path: Path) -> None:
    wish = wish_for(tmp_path / family, MODULES[family])
    D = 60 if family in ("flash2", "flash3", "sage") else 64
    assert_right(wish, *qkv(Sq=100, D=D, bshd=bshd), is_causal=True)
    assert_right(wish, *qkv(Sk=64, Hkv=2, D=D, bshd=bshd), enable_gqa=True, scale=0.3)
    assert hub_module._loaded[wish].family == family


@pytest.mark.parametrize("family", ("flash2", "flash3", "flash4"))
def test_windows(family: str, tmp_path: Path) -> None:
    wish = wish_for(tmp_path / family, MODULES[family])
    machine = look(wish)
    q, k, v = qkv(1, 2, 12, 32, Hkv=1, Sk=29)
    for mask in (window(5, None, offset=17), window(3, 4, offset=17)):
        assert_like_brute_force(wish, machine, q, k, v, mask=mask)


def test_a_function_without_windows(tmp_path: Path) -> None:
    code = """
def flash_attn_func(q, k, v, dropout_p=0.0, softmax_scale=None, causal=False):
    raise AssertionError
"""
    wish = wish_for(tmp_path / "plain", code)
    _, refusals = emitted(wish, look(wish), *qkv(), mask=window(5, None))
    assert [reason.code.value for reason in refusals] == ["mask"]


def look(wish: str) -> Machine:
    wished = registry_for([wish])[wish].limits.library
    return Machine.look(torch.device("cpu"), [wished], [wished])


def test_the_callers_k_stays_as_it_was(tmp_path: Path) -> None:
    q, k, v = qkv(Sk=64)
    before = k.clone()
    run(lambda q, k, v: S(q, k, v), q, k, v, kernel=wish_for(tmp_path / "sage1", MODULES["sage1"]))
    assert torch.equal(k, before)


def test_training_goes_to_the_next_wish(tmp_path: Path) -> None:
    wish = wish_for(tmp_path / "flash2", MODULES["flash2"])
    run(lambda q, k, v: S(q, k, v), *qkv(grad=True), kernel=f"{wish},native")
    (decision,) = decisions()
    assert decision.kernel == "native"
    assert [reason.code.value for reason in decision.rejections(wish)] == ["backward"]


def test_the_familys_own_rules_hold(tmp_path: Path) -> None:
    flash = wish_for(tmp_path / "flash2", MODULES["flash2"])
    assert refused(flash, *qkv(Sk=50), is_causal=True) == {"causal_alignment"}
    assert refused(flash, *qkv(), dropout_p=0.1) == {"dropout"}
    sage = wish_for(tmp_path / "sage1", MODULES["sage1"])
    assert refused(sage, *qkv(Sk=77)) == {"known_bug"}
    _, refusals = emitted(flash, look(flash), *qkv(), softcap=2.0)
    assert [reason.code.value for reason in refusals] == ["softcap"]
    _, refusals = emitted(flash, look(flash), *qkv(), sinks=torch.randn(4))
    assert [reason.code.value for reason in refusals] == ["sinks"]


def test_two_in_one_list(tmp_path: Path) -> None:
    one, two = (wish_for(tmp_path / family, MODULES[family]) for family in ("sage1", "flash3"))
    run(lambda q, k, v: S(q, k, v), *qkv(Sk=77), kernel=f"{one},{two}")
    assert kernels_used() == [two]


@pytest.mark.parametrize("family", ("flash2", "sage"))
def test_op(family: str, tmp_path: Path) -> None:
    wish = wish_for(tmp_path / family, MODULES[family])
    q, k, v = (x.transpose(1, 2) for x in qkv(Hkv=2))
    torch.library.opcheck(torch.ops.attnpass.hub.default, (q, k, v, wish, "NHD", 0.2, -1, 0))


PLACES = {
    "hub:org/repo": Place("org/repo", "main"),
    "hub:org/repo@v2": Place("org/repo", "v2"),
    "hub:org/repo@2": Place("org/repo", None, 2),
    "hub:/a/folder@home": Place(folder=Path("/a/folder@home")),
    "hub:./folder": Place(folder=Path.cwd() / "folder"),
}


@pytest.mark.parametrize("wish", PLACES)
def test_places(wish: str) -> None:
    assert Place.read(wish) == PLACES[wish]


@pytest.mark.parametrize("wish", ("hub:", "hub:repo", "hub:org/", "hub:a/b/c", "hub:org/@2"))
def test_neither_a_repository_nor_a_folder(wish: str) -> None:
    with pytest.raises(UnknownKernelError, match=r"which is not a kernel.* hub:org/repo, .*hub:\./folder"):
        attnpass.rewrite(sdpa_graph({}, mask=False), qkv(), options={"attnpass.kernel": wish})


def error_of(wish: str, **options: object) -> str:
    with pytest.raises(KernelUnavailableError) as caught:
        attnpass.rewrite(sdpa_graph({}, mask=False), qkv(), options={"attnpass.kernel": wish, **options})
    return str(caught.value)


@pytest.mark.parametrize("by", ("nothing", "variable", "option"))
def test_remote_code_runs_only_if_the_user_says_so(by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    standin.install(monkeypatch, {"some/one": standin.write_kernel(tmp_path / "one", MODULES["flash2"])})
    if by == "nothing":
        assert "ATTNPASS_TRUST_REMOTE_CODE=1 allows any publisher" in error_of("hub:some/one@3")
    if by == "variable":
        monkeypatch.setenv("ATTNPASS_TRUST_REMOTE_CODE", "1")
    options = {"attnpass.trust_remote_code": True} if by == "option" else {}
    if by != "nothing":
        run(lambda q, k, v: S(q, k, v), *qkv(), kernel="hub:some/one@3", options=options)
        assert kernels_used() == ["hub:some/one@3"]
    assert standin.calls == [{"repo_id": "some/one", "revision": None, "version": 3, "trusted": by != "nothing"}]


def test_trusted_after_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A refusal is not remembered when the setting changes."""
    standin.install(monkeypatch, {"some/one": standin.write_kernel(tmp_path / "one", MODULES["flash2"])})
    error_of("hub:some/one")
    monkeypatch.setenv("ATTNPASS_TRUST_REMOTE_CODE", "1")
    assert_right("hub:some/one", *qkv())


def test_the_cause_of_what_cannot_be_loaded(tmp_path: Path) -> None:
    absent = "hub:trusted/absent"
    assert f"{absent} cannot be loaded: FileNotFoundError: Cannot find a local snapshot" in error_of(absent)
    assert "Cannot find a build variant for this system" in error_of(f"hub:{tmp_path / 'nowhere'}")
    broken = wish_for(tmp_path / "broken", "raise ImportError('undefined symbol')")
    assert f"{broken} cannot be loaded: ImportError: undefined symbol" in error_of(broken)


def test_a_module_of_another_kind_says_what_is_in_it(tmp_path: Path) -> None:
    wish = wish_for(tmp_path / "other", "def relu(x): return x\ndef gelu(x): return x")
    assert f"{wish} has gelu, relu, needs flash_attn_func" in error_of(wish)
    wish = wish_for(tmp_path / "strange", "def flash_attn_func(query, key, value): return query")
    assert "needs flash_attn_func (flash-attn 2, 3 or 4) or sageattn" in error_of(wish)


def test_the_package_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "version", lambda _: None)
    text = error_of("hub:trusted/one")
    assert text.endswith("kernels is not installed here, needs >= 0.14; run: pip install 'kernels>=0.14'")


def test_explain_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wish = wish_for(tmp_path / "flash2", MODULES["flash2"])
    for machine in ("here", "h100"):
        assert main(["explain", "--shape", "2,4,33,64", "--causal", "--machine", machine, "--kernel", wish]) == 0
        assert f"{wish} -> {wish}: {wish} was asked for by name" in capsys.readouterr().out
    assert main(["explain", "--shape", "2,4,33,264", "--machine", "h100", "--kernel", wish]) == 0
    assert "head_dim is 264, needs at most 256" in capsys.readouterr().out


def test_the_real_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "kernels")
    pytest.importorskip("kernels", reason="the package `kernels` is not installed")
    assert_right(wish_for(tmp_path / "flash2", MODULES["flash2"]), *qkv(D=60), is_causal=True)
    assert "Cannot find a build variant for this system" in error_of(f"hub:{tmp_path / 'nowhere'}")


class TestVerified:
    """ATTNPASS_VERIFY=1 of a kernel that is registered only while the graph is looked at."""

    def test_a_good_kernel(self, tmp_path: Path) -> None:
        wish = wish_for(tmp_path / "flash2", MODULES["flash2"])
        model = torch.compile(
            lambda q, k, v: S(q, k, v, is_causal=True),
            backend="attnpass",
            options={"attnpass.kernel": wish, "attnpass.compiler": "aot_eager", "attnpass.verify": True},
        )
        for _ in range(2):
            model(*qkv(Sq=64))
        (watched,) = verify.compared()
        assert watched.good and watched.kernel == wish and watched.limits.exact
        assert {decision.kernel for decision in decisions()} == {wish}

    def test_how_exact_it_is_is_read_from_the_module(self, tmp_path: Path) -> None:
        """An approximate one may be as far off as its library says, which only the loaded module tells."""
        wish = wish_for(tmp_path / "sage", MODULES["sage"])
        run(lambda q, k, v: S(q, k, v), *qkv(Sq=64), kernel=wish, options={"attnpass.verify": "1"})
        (watched,) = verify.compared()
        assert watched.limits.relative_error == registry_for([wish])["sage"].limits.relative_error and watched.good

    def test_a_wrong_one_is_put_back(self, tmp_path: Path) -> None:
        code = MODULES["flash2"].replace("softmax_scale, band", "2 * softmax_scale, band")
        wish = wish_for(tmp_path / "wrong", code)
        options = {"attnpass.kernel": f"{wish},native", "attnpass.compiler": "aot_eager", "attnpass.verify": "1"}
        model = torch.compile(lambda q, k, v: S(q, k, v), backend="attnpass", options=options)
        operands = qkv(Sq=64)
        for _ in range(2):
            assert_near(model(*operands), S(*operands))
        assert [decision.kernel for decision in decisions()] == [wish, "native"]
        assert codes(decisions()[-1], wish) == {"verify"}
