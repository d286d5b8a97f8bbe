"""`python -m broker` is the `tidelog` command."""

import sys

from broker.cli import main

if __name__ == "__main__":
    sys.exit(main())
