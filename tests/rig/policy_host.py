"""HTTPS as policy hosts have it, by Python's own server: `python -m tests.rig.policy_host ADDRESS
CHAIN KEY DIRECTORY`. What it answers for a host stands in DIRECTORY/HOST: the status in the first line, a
policy (or where to go instead) behind. Each request is printed with the client's address.
"""

from __future__ import annotations

import os
import ssl
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Policies(BaseHTTPRequestHandler):
    directory = ""

    def do_GET(self) -> None:
        host = os.path.basename(self.headers.get("Host", "nobody"))
        print(f"{self.client_address[0]} asks {host} for {self.path}", flush=True)
        try:
            with open(os.path.join(self.directory, host), encoding="ascii") as file:
                status, _, text = file.read().partition("\n")
        except FileNotFoundError:
            status, text = "404", "nothing here\n"
        self.send_response(int(status))
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(text)))
        if status.startswith("3"):
            self.send_header("Location", text.strip())
        self.end_headers()
        self.wfile.write(text.encode("ascii"))


def main() -> None:
    address, chain, key, Policies.directory = sys.argv[1:]
    server = ThreadingHTTPServer((address, 443), Policies)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
