"""Streams: seeded, resumable iterables of Batch, and the sources they draw from."""
