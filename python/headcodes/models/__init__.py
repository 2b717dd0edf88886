"""Models: opened, taken apart into heads, run."""
