"""What is read off a symmetric operator by products alone: density, top eigenpairs, trace, diagonal, norms, alignment; each with its error."""
