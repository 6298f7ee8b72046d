"""attnpass: point ``torch.compile`` at the fastest attention kernels, and see why each call was or was not rewritten.

model = torch.compile(model, backend="attnpass")
ATTNPASS_KERNEL=flex,native_flash ATTNPASS_LOG=info python run.py
"""

__version__ = "0.1.0"

from attnpass.backend import clear_reports, reports
from attnpass.call import AttentionCall
from attnpass.config import Config
from attnpass.errors import AttnpassError
from attnpass.explain import explain, rewrite
from attnpass.kernel import Kernel
from attnpass.kernels import register as register_kernel
from attnpass.kernels import registry as _registry
from attnpass.limits import Limits, Rejection
from attnpass.machine import Machine
from attnpass.masks import MaskSpec
from attnpass.recomputation import ops_to_save
from attnpass.report.record import Report
from attnpass.select import Decision
from attnpass.tensor import TensorSpec


def kernels() -> tuple[Kernel, ...]:
    """Every registered kernel, in table order."""
    return tuple(_registry().values())


def last_report() -> Report | None:
    """The report of the graph compiled last, None before the first."""
    made = reports()
    return made[-1] if made else None


__all__ = [
    "AttentionCall",
    "AttnpassError",
    "Config",
    "Decision",
    "Kernel",
    "Limits",
    "Machine",
    "MaskSpec",
    "Rejection",
    "Report",
    "TensorSpec",
    "clear_reports",
    "explain",
    "kernels",
    "last_report",
    "ops_to_save",
    "register_kernel",
    "reports",
    "rewrite",
]
