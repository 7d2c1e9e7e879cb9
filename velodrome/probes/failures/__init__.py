"""Signs that a run is getting sick, before it fails."""
