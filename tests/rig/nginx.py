"""nginx as a mail proxy, run from where the peers were unpacked: it names its clients by XCLIENT.

Whom it lets in and where to is said by itself too: every client, and every password.
"""

from __future__ import annotations

import os

from tests.rig.ground import (
    PEER,
    UNPACKED,
    VIRTUAL,
    Ground,
    Process,
    peer_environment,
    wait_until,
)

OPEN, WITH_LOGIN = 2526, 2527
"""The ports where clients are taken as they come, and where they say who they are."""
_JUDGE = 2528
_CONFIGURATION = """\
load_module {modules}/ngx_mail_module.so;
daemon off;
user root;
pid {directory}/pid;
error_log stderr info;
events {{ }}
http {{
  access_log off;
  {bodies}
  server {{
    listen 127.0.0.1:{judge};
    add_header Auth-Status OK;
    add_header Auth-Server {virtual};
    add_header Auth-Port 25;
    location / {{ return 204; }}
  }}
}}
mail {{
  server_name proxy.example.net;
  auth_http 127.0.0.1:{judge}/;
  xclient on;
  server {{ listen {peer}:{open}; protocol smtp; smtp_auth none; }}
  server {{ listen {peer}:{with_login}; protocol smtp; smtp_auth plain login; }}
}}
"""
_BODIES = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")


def nginx(ground: Ground) -> Process:
    """In the peer's namespace."""
    directory = os.path.join(ground.directory, "nginx")
    os.makedirs(directory)
    text = _CONFIGURATION.format(
        modules=os.path.join(UNPACKED, "usr/lib/nginx/modules"),
        directory=directory,
        bodies=" ".join(f"{name}_temp_path {directory}/{name};" for name in _BODIES),
        judge=_JUDGE,
        virtual=VIRTUAL,
        peer=PEER,
        open=OPEN,
        with_login=WITH_LOGIN,
    )
    path = os.path.join(directory, "nginx.conf")
    with open(path, "w", encoding="ascii") as file:
        file.write(text)
    argv = [os.path.join(UNPACKED, "usr/sbin/nginx"), "-p", directory, "-e", "stderr", "-c", path]
    started = ground.start("nginx", "peer", argv, env=peer_environment())
    wait_until(
        lambda: any(
            f":{WITH_LOGIN} " in line for line in ground.sockets("peer", "state", "listening")
        ),
        5,
        "nginx does not listen",
    )
    return started
