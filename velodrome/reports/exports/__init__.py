"""Runs in the formats of other tools, one format per file; `velodrome export --to NAME` finds them by their path."""
