"""Comparing methods over tasks, models and seeds."""
