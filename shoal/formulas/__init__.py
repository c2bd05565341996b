"""Formulas for one decision or one stream ``[T]``, and the seam where distribution enters (`optimise`)."""
