"""Installations that are there and do not work: what importing them says becomes the reason, and nothing breaks."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch.nn.functional as F
from torch._dynamo.exc import BackendCompilerFailed

import attnpass
from attnpass.errors import KernelUnavailableError
from attnpass.kernels.flash2 import FLASH_ATTN
from attnpass.kernels.flash3 import FLASH_ATTN_3
from attnpass.kernels.flash4 import FLASH_ATTN_4
from attnpass.kernels.sage import SAGE
from attnpass.kernels.sage1 import SAGE_1
from attnpass.kernels.xformers import XFORMERS
from attnpass.machine import library
from attnpass.machine.library import Library
from attnpass.testing import sdpa_graph
from tests.helpers.compiled import qkv, run
from tests.standins import flash_attn_2, flash_attn_4, pretend_all, tried


def rewrite(kernel: str) -> None:
    attnpass.rewrite(sdpa_graph({}, mask=False), qkv(), options={"attnpass.kernel": kernel})


def broken_module(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, code: str) -> None:
    """A module on ``sys.path`` whose import runs ``code``."""
    (folder / f"{name}.py").write_text(code)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, name, raising=False)


BROKEN = {
    "ImportError: x.so: undefined symbol: _ZN2at": "raise ImportError('x.so: undefined symbol: _ZN2at')",
    "RuntimeError: two lines": "raise RuntimeError('two\\n   lines')",
    "SystemExit: 3": "import sys; print('noise', file=sys.stderr); sys.exit(3)",
    "ModuleNotFoundError: No module named 'einops_of_its_own'": "import einops_of_its_own",
    "AssertionError": "assert False",
}


@pytest.mark.parametrize("text", BROKEN)
def test_what_the_import_raises_is_the_reason(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken_module(tmp_path, monkeypatch, "broken_attn", BROKEN[text])
    found = tried(monkeypatch, Library("broken-attn", "1.0", modules=("broken_attn",)), "1.2")
    assert found.problem == f"1.2, which cannot be imported ({text})"
    assert capsys.readouterr().err == ""


def test_control_c_is_not_swallowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken_module(tmp_path, monkeypatch, "broken_attn", "raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        tried(monkeypatch, Library("broken-attn", "1.0", modules=("broken_attn",)), "1.2")


def test_too_old_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken_module(tmp_path, monkeypatch, "broken_attn", "raise ImportError")
    old = Library("broken-attn", "1.0", modules=("broken_attn",))
    assert tried(monkeypatch, old, "0.9").problem == ""
    assert old.version_problem("0.9") == "0.9"


VERSIONS = (
    (FLASH_ATTN, "2.6.2", "2.6.2"),
    (FLASH_ATTN, "2.6.3", ""),
    (FLASH_ATTN, "2.8.3.post2+cu13", ""),
    (FLASH_ATTN, "unknown", "unknown"),
    (FLASH_ATTN, None, "not installed"),
    (SAGE, "1.0.6", "1.0.6"),
    (SAGE, "2.2.0", ""),
    (SAGE_1, "1.0.6", ""),
    (SAGE_1, "2.2.0", "2.2.0"),
    (FLASH_ATTN_3, "0.1", ""),
    (XFORMERS, "0.0.28.post3", "0.0.28.post3"),
)


@pytest.mark.parametrize(("installed", "version", "problem"), VERSIONS, ids=str)
def test_versions(installed: Library, version: str | None, problem: str) -> None:
    assert installed.version_problem(version) == problem


def test_a_broken_library_that_is_asked_for_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken_module(tmp_path, monkeypatch, "flash_attn", "raise ImportError('no kernel image')")
    monkeypatch.delitem(sys.modules, "flash_attn.flash_attn_interface", raising=False)
    pretend_all(monkeypatch, "h100", {FLASH_ATTN: "2.8.3"})
    with pytest.raises(KernelUnavailableError) as caught:
        rewrite("flash2")
    assert str(caught.value).endswith(
        "options['attnpass.kernel'] names flash2, whose library flash-attn is 2.8.3, which cannot be imported "
        "(ImportError: no kernel image) here, needs >= 2.6.3; run: pip install 'flash-attn>=2.6.3'"
    )


def test_a_broken_library_that_nobody_asked_for_is_only_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken_module(tmp_path, monkeypatch, "flash_attn", "raise ImportError('no kernel image')")
    pretend_all(monkeypatch, "h100", {FLASH_ATTN: "2.8.3"})
    run(lambda q, k, v: F.scaled_dot_product_attention(q, k, v), *qkv(), kernel="native_math")
    (decision,) = attnpass.reports()[-1].decisions
    assert decision.kernel == "native_math"
    assert "no kernel image" in str(decision.rejections("flash2")[0])


UNAVAILABLE = {
    "flash2": "flash-attn is not installed here, needs >= 2.6.3; run: pip install 'flash-attn>=2.6.3'",
    "flash3": "flash-attn-3 is not installed here, needs any version; run: pip install tokenspeed-fa3",
    "flash4": "flash-attn-4 is not installed here, needs >= 4.0.0b36; run: pip install flash-attn-4",
    "sage": "sageattention is not installed here, needs >= 2.1.1; run: python setup.py install in",
    "sage1": "sageattention is not installed here, needs >= 1.0.5, < 2; run: pip install sageattention==1.0.6",
    "xformers": "xformers is not installed here, needs >= 0.0.29; run: pip install 'xformers>=0.0.29'",
}


@pytest.mark.parametrize("kernel", UNAVAILABLE)
def test_a_missing_library_names_its_install_line(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_all(monkeypatch, "h100", {})
    with pytest.raises(KernelUnavailableError) as caught:
        rewrite(kernel)
    assert UNAVAILABLE[kernel] in str(caught.value)


def test_flash_attn_4_covered_by_the_old_copy_in_flash_attn_2(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both write into ``flash_attn/cute``; the one that was installed last is there."""
    flash_attn_4.install(monkeypatch, old_copy=True)
    text = "flash_attn.cute is the old copy of flash-attn 2; install flash-attn-4 after it"
    assert tried(monkeypatch, FLASH_ATTN_4, "4.0.0b36").problem == f"4.0.0b36, which cannot be used ({text})"


def test_flash_attn_2_alone_is_not_flash_attn_4_and_the_reverse(monkeypatch: pytest.MonkeyPatch) -> None:
    """``import flash_attn`` works with either: a module of that name says nothing."""
    flash_attn_2.install(monkeypatch)
    assert "flash_attn.cute" in tried(monkeypatch, FLASH_ATTN_4, "4.0.0b36").problem
    flash_attn_4.install(monkeypatch)
    monkeypatch.delitem(sys.modules, "flash_attn.flash_attn_interface")
    assert "flash_attn.flash_attn_interface" in tried(monkeypatch, FLASH_ATTN, "2.8.3").problem


def test_the_version_comes_from_any_of_the_distributions(monkeypatch: pytest.MonkeyPatch) -> None:
    def distributions(name: str) -> list[SimpleNamespace]:
        return [SimpleNamespace(version="3.0.0")] if name == "tokenspeed-fa3" else []

    monkeypatch.setattr("importlib.metadata.distributions", distributions)
    assert library.version.__wrapped__(FLASH_ATTN_3) == "3.0.0"
    assert library.version.__wrapped__(FLASH_ATTN) is None


def test_only_wished_libraries_are_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    imported: list[str] = []
    monkeypatch.setattr(library, "try_out", lambda one: imported.append(one.name) or library.Found("9"))
    monkeypatch.setattr(library, "version", lambda _: "9")
    found = library.look([FLASH_ATTN, XFORMERS], imported=[XFORMERS])
    assert imported == ["xformers"]
    assert found == {FLASH_ATTN: library.Found("9"), XFORMERS: library.Found("9")}


def test_a_library_too_old_is_an_error_inside_torch_compile_too(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_all(monkeypatch, "h100", {FLASH_ATTN: "2.5.9"})
    with pytest.raises(
        BackendCompilerFailed, match=r"KernelUnavailableError: .*flash-attn is 2\.5\.9 here, needs >= 2"
    ):
        run(lambda q, k, v: F.scaled_dot_product_attention(q, k, v), *qkv(), kernel="flash2")
