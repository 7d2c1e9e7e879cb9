"""The one torch.optim.Optimizer (chain.py) and one update rule per file."""
