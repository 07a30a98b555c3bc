"""Two hundred thousand conversations that nobody would hold, against the machines of SMTP, and some
thousand cases for each other parser; `make fuzz N=10000000` holds as many as one likes.

Prints PASS and FAIL lines for `make check`.
"""

from __future__ import annotations

import os
import sys

from mta.testing.fuzz.blocks import Held, check_blocks, hold_all


def main() -> int:
    os.chdir(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    named = check_blocks()
    names = {block: name for name, block in named}

    def tell(held: Held) -> None:
        name = names[held.block]
        if held.fault:
            print(f"{held.facts}: {held.fault}\nFAIL {name}: {held.facts}", flush=True)
        else:
            print(f"PASS {name} ({held.facts})", flush=True)

    held = hold_all([block for _, block in named], tell)
    return 1 if any(one.fault for one in held) else 0


if __name__ == "__main__":
    sys.exit(main())
