"""Eight-bit matrices: which of them can be, with what scales, and on what texts that is judged."""
