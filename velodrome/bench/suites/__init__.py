"""Suites: which workloads belong together, one suite per file."""
