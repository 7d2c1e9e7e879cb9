"""One sub-command of `velodrome` per file: `main(arguments) -> exit code`. Only these import what they need; cli.py imports none of them."""
