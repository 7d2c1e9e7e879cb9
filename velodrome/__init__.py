"""Velodrome: a track for the algorithms that train neural networks. Version 0.1.0."""
