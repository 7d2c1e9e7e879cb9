"""Velodrome: a track for the algorithms that train neural networks."""
