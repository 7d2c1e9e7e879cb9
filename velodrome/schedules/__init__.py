"""Pure functions of the step: int -> float."""
