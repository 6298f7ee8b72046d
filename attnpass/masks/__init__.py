"""The meaning of masks.

Today a mask is ``none``, ``causal`` (from ``is_causal``) or a tensor whose values only the running program knows.
"""

from attnpass.masks.spec import MaskSpec, MaskTerm, Term

__all__ = ["MaskSpec", "MaskTerm", "Term"]
