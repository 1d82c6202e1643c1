"""``python -m loadtest``: the same as ``moe-serving load``."""

import sys

from serving.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["load", *sys.argv[1:]]))
