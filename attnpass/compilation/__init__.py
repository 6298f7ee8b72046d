"""The rewritten graph handed to a compiler, and what keeps its code from going stale."""
