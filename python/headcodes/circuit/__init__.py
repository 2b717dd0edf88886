"""Circuits, and the files that other tools keep them in."""
