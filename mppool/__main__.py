"""`python -m mppool`: the command `mppool`, for where the console script is not on the path."""

import sys

from mppool.cli import main

if __name__ == "__main__":
    sys.exit(main())
