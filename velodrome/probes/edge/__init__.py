"""Where a step becomes unstable: thresholds of the optimizers, and how far from them a run is."""
