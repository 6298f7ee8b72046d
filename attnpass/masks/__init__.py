"""The meaning of masks.

Today a mask is ``none``, ``causal`` (from ``is_causal``) or a tensor whose values only the running program knows.
"""

from attnpass.masks.spec import EmptyRows, MaskSpec, MaskTerm, Term

__all__ = ["EmptyRows", "MaskSpec", "MaskTerm", "Term"]
