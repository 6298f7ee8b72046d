"""Nodes put into a graph: casts, layouts, masks as tensors or blocks, and the ops of our own."""
