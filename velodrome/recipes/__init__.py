"""Functions that return a frozen Recipe: a whole training algorithm."""
