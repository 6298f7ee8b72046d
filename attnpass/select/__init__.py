"""A call, the kernels and a machine -> who computes it, and why."""
