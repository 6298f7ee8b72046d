"""attnpass: point ``torch.compile`` at the fastest attention kernels, and see why each call was or was not rewritten.

model = torch.compile(model, backend="attnpass")
ATTNPASS_KERNEL=flex,native_flash ATTNPASS_LOG=info python run.py
"""

from attnpass.backend import make_known
from attnpass.compilation.recomputation import ops_to_save
from attnpass.errors import AttnpassError
from attnpass.graph.tensor import TensorSpec
from attnpass.ir.call import AttentionCall
from attnpass.ir.decision import Decision
from attnpass.ir.limits import Limits, Rejection
from attnpass.ir.mask import MaskSpec
from attnpass.kernels.kernel import Kernel
from attnpass.kernels.registry import list_kernels
from attnpass.kernels.registry import register as register_kernel
from attnpass.machine.machine import Machine
from attnpass.offline import explain, explain_on, rewrite
from attnpass.report.history import clear_reports, last_report, lock, reports
from attnpass.report.record import Report
from attnpass.settings.config import Config
from attnpass.version import __version__

make_known()

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
    "__version__",
    "clear_reports",
    "explain",
    "explain_on",
    "last_report",
    "list_kernels",
    "lock",
    "ops_to_save",
    "register_kernel",
    "reports",
    "rewrite",
]
