"""Kernels run on this machine: are they right, and how fast?"""
