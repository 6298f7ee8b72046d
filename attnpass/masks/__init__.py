"""The meaning of masks: read from the graph (`trace`), proved (`prove`), and computed again (`lower`, `blocks`)."""

from attnpass.masks.spec import RULES, EmptyRows, MaskSpec, MaskTerm, Term

__all__ = ["RULES", "EmptyRows", "MaskSpec", "MaskTerm", "Term"]
