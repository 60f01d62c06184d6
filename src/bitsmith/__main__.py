"""``python -m bitsmith``: the command line."""

import sys

from bitsmith.cli import main

if __name__ == "__main__":
    sys.exit(main())
