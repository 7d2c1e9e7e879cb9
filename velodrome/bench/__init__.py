"""Time to a target: workloads, the protocol of a race, and its score."""
