"""(outputs, targets) -> loss per example, one file each."""
