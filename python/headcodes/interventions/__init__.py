"""Running a model with parts of it changed."""
