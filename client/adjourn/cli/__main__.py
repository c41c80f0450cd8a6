"""`python -m adjourn.cli`: the command where it is not on the PATH."""

import sys

from adjourn.cli.group import main

if __name__ == "__main__":
    sys.exit(main())
