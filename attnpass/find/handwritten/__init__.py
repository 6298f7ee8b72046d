"""Attention written by hand: softmax between two products, followed value by value."""
