"""What stands in the place of things that packages import and their attention does not need: data sets, sound files.

torchvision's compiled ops belong to another build of PyTorch than the CPU's. Its Python parts, and so timm, can be
imported once the ops exist that they describe.
"""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import torch

ABSENT = (
    *("torchaudio", "torchcodec", "librosa", "soundfile", "numba", "dac", "av", "sounddevice", "resampy"),
    *("datasets", "wandb", "tensorboard", "tensorboardX", "cv2", "trl", "gensim", "faiss", "h5py", "pyonmttok"),
    *("torchao", "pkg_resources", "fairseq", "taming", "webdataset", "pycocotools", "boto3", "botocore", "spacy"),
    *(
        "mlflow",
        "optuna",
        "ray",
        "xgboost",
        "lightgbm",
        "utilsforecast",
        "coreforecast",
        "apex",
        "deepspeed",
        "tensorflow",
    ),
    *("torchdata", "bitsandbytes", "gradio", "supervision", "colorlog", "rjieba", "ahocorasick", "autofaiss", "sh"),
    *(
        "vocos",
        "gdown",
        "num2words",
        "g2p_en",
        "pyfaidx",
        "ai4ts",
        "jaraco",
        "Bio",
        "rapidfuzz",
        "google",
        "segtok",
        "zstd",
        "fasthtml",
        "tsdb",
        "benchpots",
    ),
    *("gym", "rdkit", "audiotools", "resize_right", "spmd_types", "polars", "statsmodels", "pypinyin", "jieba"),
)
TORCHVISION = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
KEPT: list[torch.library.Library] = []  # a library that is collected takes its ops along


def install() -> None:
    """Make what is missing importable. What is there is used: these are asked last."""
    library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in TORCHVISION:
        library.define(schema)
    KEPT.append(library)
    sys.meta_path.append(_Absent())


class _Nothing(type):
    """The class of classes that have every attribute, and do nothing."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Nothing(name, (Nothing,), {})


class Nothing(metaclass=_Nothing):
    """Called as a decorator, it gives back what it decorates."""

    def __init__(self, *_: Any, **__: Any) -> None:
        """Take anything."""

    def __call__(self, *args: Any, **_: Any) -> Any:
        return args[0] if args else self

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Nothing()


class _Empty(ModuleType):
    """A module in which everything is there."""

    __path__: list[str] = []  # noqa: RUF012
    __version__ = "9.9"

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Nothing(name, (Nothing,), {})


class _Absent:
    """Finds the packages of `ABSENT` and whatever is imported from them."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        return ModuleSpec(name, self, is_package=True) if name.partition(".")[0] in ABSENT else None  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Empty(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Nothing to run."""
