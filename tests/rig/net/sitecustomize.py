"""Lays the audit net under a process of the rig, before its first line of product code.

On PYTHONPATH of these processes only; `MTA_AUDIT_SOCKETS` names the file that keeps the breaches.
"""

import os

from mta.testing.audit import install_from

install_from(os.environ)
