"""`python -m mta.testing.fuzz`: see holding.py."""

from __future__ import annotations

import sys

from mta.testing.fuzz.holding import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
