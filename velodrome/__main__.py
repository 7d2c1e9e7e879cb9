"""`python -m velodrome`."""

import sys

from velodrome.cli import main

if __name__ == "__main__":
    sys.exit(main())
