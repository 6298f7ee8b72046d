"""Hold a kernel to its limits: generated calls, each either computed right or refused with a code.

For the kernels of this package and for third parties' alike:

    from attnpass import testing

    @pytest.mark.parametrize("case", testing.cases(200), ids=str)
    def test_my_kernel(case):
        testing.check("my_kernel", case, device="cuda")
"""

from attnpass.testing.cases import Case, cases, cases_for, make_operands, runnable
from attnpass.testing.conformance import Outcome, check, sdpa_graph

__all__ = ["Case", "Outcome", "cases", "cases_for", "check", "make_operands", "runnable", "sdpa_graph"]
