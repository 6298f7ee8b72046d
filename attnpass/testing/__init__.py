"""Hold a kernel to its limits: generated calls, each either computed right or refused with a code.

For the kernels of this package and for third parties' alike:

    from attnpass import testing
    from my_package import MyAttention

    def test_my_attention():
        assert testing.conform(MyAttention(), device="cuda")["right"] > 50
"""

from attnpass.testing.cases import Case, cases, cases_for, make_operands, runnable
from attnpass.testing.conformance import Outcome, check, sdpa_graph
from attnpass.testing.suite import check_compiled, check_ops, check_refusals, check_symbolic, conform

__all__ = [
    "Case",
    "Outcome",
    "cases",
    "cases_for",
    "check",
    "check_compiled",
    "check_ops",
    "check_refusals",
    "check_symbolic",
    "conform",
    "make_operands",
    "runnable",
    "sdpa_graph",
]
