"""Judging circuits: truths, faithfulness, areas."""
