#!/usr/bin/env -S python3 -I
"""The fence agent of the Pacemaker rig: asks the rig to take the power from a node, and waits.

Spoken to as fence agents are (FenceAgentAPI): `name=value` lines on standard input. Law: it says 0
for `off` only when the rig has said that every process of that node is gone.
"""

import os
import socket
import sys

METADATA = """<?xml version="1.0" ?>
<resource-agent name="fence_rig" shortdesc="Takes the power from a node of the rig">
<longdesc>Asks the rig at a UNIX socket.</longdesc>
<parameters>
<parameter name="action" required="1"><content type="string" default="off"/><shortdesc>What to do</shortdesc></parameter>
<parameter name="port" required="1"><content type="string"/><shortdesc>The node</shortdesc></parameter>
<parameter name="socket" required="1"><content type="string"/><shortdesc>Where the rig listens</shortdesc></parameter>
</parameters>
<actions>
<action name="off"/><action name="monitor"/><action name="status"/><action name="list"/><action name="metadata"/>
</actions>
</resource-agent>
"""
TIMEOUT_SECONDS = 60


def main() -> int:
    given = dict(line.strip().split("=", 1) for line in sys.stdin if "=" in line and line[0] != "#")
    action = given.get("action", given.get("option", "off"))
    if action == "metadata":
        print(METADATA)
        return 0
    if action == "list":
        action = "monitor"  # the nodes stand in pcmk_host_list
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
        asking.settimeout(TIMEOUT_SECONDS)
        asking.connect(given["socket"])
        asking.sendall(f"{action} {given.get('port', '-')} {os.uname().nodename}\n".encode())
        answer = asking.makefile().readline().strip()
    if answer != "ok":
        print(answer, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
