"""What costs how much: each module is run by one command, `python -m benchmarks.NAME`."""
