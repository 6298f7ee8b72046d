"""The figures of `benchmarks.figures`, one file each. They need matplotlib; nothing else here does."""
