"""Statistics of the gradients of single examples: noise scale, coherence, hard and opposing examples."""
