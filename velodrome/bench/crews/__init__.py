"""Who trains the runs of a race, and where the runs are kept: processes on cores of their own, machines of a Ray cluster, object storage."""
