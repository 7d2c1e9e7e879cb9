"""The version, in one place: pyproject reads it, `velodrome --version` prints it, every record carries it."""

__version__ = "0.1.0"
