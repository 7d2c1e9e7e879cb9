"""How p.grad is filled: Batch -> mean loss, leaving the gradient in place."""
