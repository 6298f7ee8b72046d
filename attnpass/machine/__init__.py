"""This machine and its libraries, as data."""
