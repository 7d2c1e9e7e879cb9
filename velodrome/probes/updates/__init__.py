"""What the optimizer's steps do to the weights: angles, sizes, directions, distances."""
