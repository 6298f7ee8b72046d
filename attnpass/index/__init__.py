"""A tensor as a function of its indices: expressions, and the ops of a program replayed on them."""
