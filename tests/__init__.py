"""The trial suite: no root, no network, no sleeping.

`make test` lays the audit net under it: a socket that a test opens past the doors is written to the
file that MTA_AUDIT_SOCKETS names, and fails the run. The net's own tests may.
"""

import os

from mta.testing.audit import DOORS, ENVIRONMENT, install

if os.environ.get(ENVIRONMENT):
    install(os.environ[ENVIRONMENT], allowed=(*DOORS, os.path.join("tests", "test_audit.py")))
