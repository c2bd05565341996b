"""The command ``shoal``, and ``python -m shoal``.

Worker processes import this file too, as the module that was run: it imports nothing before it is asked to.
"""

import gc
import os
import sys


def main() -> int:
    """Run one command; its exit code."""
    gc.disable()  # what the start makes is all kept; `arguments.parse` turns it on again
    from shoal.command import cli

    code = cli.main()
    from shoal.runtimes.crew import beside

    if beside.left():  # e.g. XLA compiles what nobody wants any more, and an ordinary exit would wait for it
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


if __name__ == "__main__":
    sys.exit(main())
