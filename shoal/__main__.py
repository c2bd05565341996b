"""``python -m shoal`` is the command line."""

import sys

from shoal import cli

if __name__ == "__main__":
    sys.exit(cli.main())
