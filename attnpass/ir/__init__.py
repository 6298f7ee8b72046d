"""Frozen data that every room speaks: calls, masks, meanings, limits, decisions."""
