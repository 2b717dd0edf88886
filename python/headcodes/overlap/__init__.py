"""Counting codes that occur on one side only."""
