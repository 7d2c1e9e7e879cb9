"""The live page over a folder of runs: a read-only server that reads what was appended, and a page without a build step. No torch."""
