"""A model and its inputs out of a user's Python file, for ``attnpass explain FILE.py[:name]``."""

from __future__ import annotations

import importlib.util
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from attnpass.errors import AttnpassError
from attnpass.report.record import Report

MODULE_NAME = "attnpass_explained"
METAVAR = "FILE.py[:name]"
HELP = "a file with `model` (or the given name) and `inputs`: a tuple, a dict, or a function that returns one"
WANTED_INPUTS = "a tuple, a dict, or a function that returns one"


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model with the arguments to call it with."""

    label: str
    model: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def explained_by(self, explain: Callable[..., list[Report]]) -> list[Report]:
        """Run ``explain`` on the model; an exception of the model is told as one line.

        Raises:
            AttnpassError: the model raised.
        """
        with _told(f"tracing {self.label}"):
            return explain(self.model, *self.args, **self.kwargs)


def load_model(target: str) -> LoadedModel:
    """Run the file and take the model and its inputs out of it.

    Args:
        target: ``FILE.py`` or ``FILE.py:name``; the name is ``model`` if it is not given.

    Raises:
        AttnpassError: no such file, the file raised, or it lacks one of the two names.
    """
    path, name = _split(target)
    module = _run(path)
    model = _take(module, path, name)
    if not callable(model):
        raise AttnpassError(f"loading {path}: {name} is {type(model).__name__}, needs a module or a function")
    args, kwargs = _arguments(_take(module, path, "inputs"), path)
    return LoadedModel(f"{path}:{name}", model, args, kwargs)


def _split(target: str) -> tuple[Path, str]:
    if Path(target).is_file():
        return Path(target), "model"
    file, colon, name = target.rpartition(":")
    path = Path(file if colon else target)
    if not path.is_file():
        raise AttnpassError(f"loading {target}: there is no file {path}, needs FILE.py or FILE.py:name")
    return path, name


def _run(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(MODULE_NAME, path)
    if spec is None or spec.loader is None:
        raise AttnpassError(f"loading {path}: it is no Python file, needs a name that ends in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[MODULE_NAME] = module  # where Dynamo and pickle look for what the file defines
    sys.path.insert(0, str(path.resolve().parent))
    with _told(f"loading {path}"):
        spec.loader.exec_module(module)
    return module


def _take(module: ModuleType, path: Path, name: str) -> Any:
    if hasattr(module, name):
        return getattr(module, name)
    models = [key for key, value in vars(module).items() if isinstance(value, torch.nn.Module)]
    there = f"; modules in it: {', '.join(models)}" if models else ""
    needed = WANTED_INPUTS if name == "inputs" else "a module or a function; or name another one: FILE.py:name"
    raise AttnpassError(f"loading {path}: it defines no `{name}`, needs {needed}{there}")


def _arguments(inputs: Any, path: Path) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
    if callable(inputs) and not isinstance(inputs, torch.Tensor):
        with _told(f"calling inputs() of {path}"):
            inputs = inputs()
    if isinstance(inputs, torch.Tensor):
        return (inputs,), {}
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    if isinstance(inputs, Sequence) and not isinstance(inputs, str):
        return tuple(inputs), {}
    raise AttnpassError(f"loading {path}: `inputs` is {type(inputs).__name__}, needs {WANTED_INPUTS}")


@contextmanager
def _told(doing: str) -> Iterator[None]:
    """Turn an exception of the user's code into one line that says where it was raised."""
    try:
        yield
    except (AttnpassError, KeyboardInterrupt):
        raise
    except BaseException as error:
        innermost = traceback.extract_tb(error.__traceback__)[-1]
        where = f" (at {innermost.filename}:{innermost.lineno})"
        first = str(error).strip().split("\n")[0]
        raise AttnpassError(f"{doing}: {type(error).__name__}: {first}{where}") from error
