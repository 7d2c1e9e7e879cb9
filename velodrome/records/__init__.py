"""A run on disk: recipe, rows, environment, checkpoints, result."""
