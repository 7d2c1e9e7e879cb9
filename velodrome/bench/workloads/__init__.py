"""Data + model + loss + metric + targets + budget, one workload per file."""
