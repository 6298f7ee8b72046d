"""Measured choices: time the kernels that take a call on this machine, and remember which was fastest."""
