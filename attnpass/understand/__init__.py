"""Mask tensors -> what they mean."""
