"""What each operation of PyTorch means for arrays: one table, from the operation's name to a function.

A function takes what is known of the result (`Like`) and the operation's own arguments, in its own order, tensors as
`Array` and sizes as numbers or SymInts. An operation that is not here has no meaning: the tracer reads its value at run
time and says its name in the report. Source of each meaning: the documentation of ``torch``.
"""

from attnpass.index.rules import creation, joins, pointwise, views
from attnpass.index.rules.table import MEANINGS

__all__ = ["MEANINGS", "creation", "joins", "pointwise", "views"]
