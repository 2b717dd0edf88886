"""Prompt pairs, their tokens, and whether the model answers them."""
