"""`python -m mta.config FILE` checks a configuration in a process of its own.

Exit 0, or 78 (EX_CONFIG) with every mistake as `file:line:column: path: message` on standard error.
`--generate` writes the commented sample with the plugins that are installed here; `--default` the
configuration of a first run.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys

from mta.config.errors import ConfigErrors
from mta.config.generate import default_text, generate
from mta.config.load import load_file
from mta.plugins.find import Catalogue


def main(arguments: list[str]) -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(prog="python -m mta.config", description=__doc__)
    chosen = parser.add_mutually_exclusive_group(required=True)
    chosen.add_argument("file", nargs="?", metavar="FILE", help="the configuration to check")
    chosen.add_argument("--generate", action="store_true", help="write the commented sample")
    chosen.add_argument("--default", action="store_true", help="write a first run's configuration")
    parser.add_argument("--directory", default="var", help="with --default: where all of it lies")
    parser.add_argument("--port", type=int, default=2525, help="with --default: the SMTP port")
    options = parser.parse_args(arguments)
    catalogue = Catalogue()
    if options.generate:
        sys.stdout.write(generate(catalogue.available))
    elif options.default:
        directory = os.path.abspath(options.directory)
        sys.stdout.write(default_text(directory, options.port, platform.node()))
    else:
        try:
            load_file(options.file, catalogue.find)
        except ConfigErrors as errors:
            sys.stderr.write(f"{errors}\n")
            return errors.exit_code
        sys.stdout.write(f"{options.file}: no mistake\n")
    return os.EX_OK


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
