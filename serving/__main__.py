"""Makes ``python -m serving`` an alias of ``moe-serving``."""

import sys

from serving.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
