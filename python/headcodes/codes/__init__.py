"""Codes: sparse autoencoders, their training, argmax."""
