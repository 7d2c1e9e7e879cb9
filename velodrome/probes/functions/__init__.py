"""The network as a function: tangent kernel, information, landscape, attribution."""
