"""Probes against the best measured: `python -m benchmarks.probes`."""
