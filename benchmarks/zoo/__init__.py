"""Models that nobody here wrote: those of the libraries that people use, and strangers from PyPI."""
