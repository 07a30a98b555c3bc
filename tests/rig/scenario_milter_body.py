"""A filter on Debian's pymilter puts other bodies in the place of those that came."""

from __future__ import annotations

import os

from tests.rig.ground import PEER, ROOT, UNPACKED, Process, expect, peer_environment, wait_until
from tests.rig.node import Rig
from tests.rig.peers import Arrived, Client, Sink
from tests.rig.postfix import Keeper
from tests.rig.scenario_milter import OpenDkim

MEBIBYTE = 1 << 20
GROWN_MIB = 12.0
"""What a body of 20 MiB may cost in memory: the pieces under way, and what Python keeps of them."""


def scenario_pymilter_replaces(rig: Rig) -> None:
    """What arrives is the body that the filter made, whatever its size, and opendkim's signature, made
    behind it, holds for that body; the process has not grown by it.
    """
    sink, filtered, signer = Sink(rig).start(), Rewriter(rig), OpenDkim(rig)
    filtered.start()
    signer.start()
    rig.online(extra=_policies(filtered.socket, signer.socket))
    client = Client(rig)
    client.hello()
    for number, (do, body) in enumerate(
        (
            ("upper", b"..hello\r\nyou\r\n"),
            ("new=100 lf", b"old\r\n"),
            ("new=1000000", b"old\r\n" * 100_000),
            ("upper", b"x" * 70 + b"\r\n"),
            ("", b"left alone\r\n"),
        )
    ):
        answer = _send(client, do, body)
        expect(answer.startswith(b"250"), f"{do!r} hears {answer!r}")
        sink.wait(number + 1)
    said = {_do(m): m for m in sink.messages()}
    expect(
        len(said) == 4 and len(sink.messages()) == 5, f"there arrived {list(said)}, not all of them"
    )
    small, large = said["new=100 lf"], said["new=1000000"]
    line = "." + "n" * 69
    expect(_body(small) == (line + "\n") * 845, f"LF came to {_body(small)[:200]!r}")
    expect(_body(large) == (line + "\n") * 833 * 16, "the large body is another")
    expect(small.header("Subject") == "rewritten", "its Subject is the old one")
    expect(small.header("X-Done") == "new lf", f"X-Done is {small.header('X-Done')!r}")
    uppers = [_body(m) for m in sink.messages() if _do(m) == "upper"]
    expect(".HELLO\nYOU\n" in uppers, f"in capitals it is {uppers}")
    expect(_body(said[""]) == "left alone\n", "a body that was left alone is another")
    for message in sink.messages():
        expect(signer.verifies(message.text), f"nobody can verify {message.text[:900]!r}")

    process = rig.process()
    before = process.resident_mib()
    answer = _send(client, f"new={20 * MEBIBYTE}", b"old\r\n")
    expect(answer.startswith(b"250"), f"a body of 20 MiB hears {answer!r}")
    grown = process.peak_mib() - before
    expect(grown < GROWN_MIB, f"a new body of 20 MiB made the process grow by {grown:.1f} MiB")
    rig.note(f"a new body of 20 MiB cost {grown:.1f} MiB at the most")
    sink.wait(6)
    expect("mta/milter[" not in rig.log(), "the log complains about a filter")


def scenario_pymilter_refused(rig: Rig) -> None:
    """A body that was replaced and then not taken leaves nothing: not when the filter says later, sends
    what no client may send, or dies in the middle.
    """
    sink, filtered = Sink(rig).start(), Rewriter(rig)
    filtered.start()
    rig.online(extra=_policies(filtered.socket), listener="limits: {size: 3MiB}")
    client = Client(rig)
    client.hello()
    for do in ("new=900000 tempfail", "new=900000 nul", "new=4000000", "new=900000 die"):
        answer = _send(client, do, b"old\r\n" * 100_000)
        expect(answer.startswith(b"451 4.7.1"), f"{do} hears {answer!r}")
        if "die" in do:
            filtered.start()
    parts = os.path.join(rig.spool, "part")
    wait_until(lambda: not os.listdir(parts), 5, f"{parts} holds {os.listdir(parts)}")
    listed = rig.command("queue", "list").stdout
    expect("@" not in listed, f"the queue has {listed!r}")
    answer = _send(client, "new=900000", b"old\r\n")
    expect(answer.startswith(b"250"), f"the next one hears {answer!r}")
    sink.wait(1)
    expect(len(sink.messages()) == 1, f"there arrived {len(sink.messages())} messages")
    for words in ("the new body cannot be taken: NUL octet", "answers again"):
        rig.wait_log(words)


def scenario_pymilter_envelope(rig: Rig) -> None:
    """A filter hears of recipients that are not taken, and of header fields without an answer each; who
    it adds, and the sender that it puts in, come with their parameters, as Postfix sees them.
    """
    server, filtered = Keeper(rig), Rewriter(rig)
    server.start()
    filtered.start()
    connector = f"""
        - name: hub
          kind: smtp
          bridgeheads: ["{PEER}:25"]
          address-spaces: [{{domain: example.com}}, {{domain: example.org}}]
    """
    rig.online(extra=_policies(filtered.socket), connectors=connector)
    client = Client(rig)
    client.hello()
    client.say(b"MAIL FROM:<s@example.net> RET=FULL ENVID=old")
    answer = client.say(b"RCPT TO:<x@nowhere.example>")
    expect(answer.startswith(b"550"), f"a recipient without a way hears {answer!r}")
    client.say(b"RCPT TO:<b@example.com>")
    answer = _send(client, "rcpt", b"kept\r\n", begun=True)
    expect(answer.startswith(b"250"), f"the message hears {answer!r}")
    [kept] = server.wait(1)
    asked = kept.records("named_attribute")
    for wanted in ("envelope_id=rewritten", "ret_flags=2", "notify_flags=1"):
        expect(wanted in asked, f"{wanted} is not among {asked}")
    expect(kept.records("sender") == ["other@example.net"], f"it is from {kept.records('sender')}")
    expect("added@example.com" in kept.records("recipient"), "the added recipient is not there")
    expect("X-Refused: <x@nowhere.example> 5." in kept.text, f"X-Refused is not in {kept.text!r}")
    expect("mta/milter[" not in rig.log(), "the log complains about a filter")


def scenario_pymilter_unknown(rig: Rig) -> None:
    """A command that nobody knows is answered with the filter's words, or with ours when it has none.
    The message in which one stands arrives as the filter made it: a filter without DATA does not hear of
    one there, for libmilter would forget the message. Twenty in a row end the association all the same.
    """
    sink, filtered = Sink(rig).start(), Rewriter(rig)
    filtered.start()
    rig.online(extra=_policies(filtered.socket))
    for hears_data, within in ((False, b"500 5.5.1"), (True, b"502 5.5.1")):
        filtered.start(hears_data)
        client = Client(rig)
        client.hello()
        for line, wanted in (
            (b"XFOO with words", b"502 5.5.1 The filter does not know XFOO with words either"),
            (b"XQUIET", b"500 5.5.1 Command not recognised"),
        ):
            answer = client.say(line)
            expect(answer.strip() == wanted, f"{line!r} hears {answer!r}")
        for line in (b"MAIL FROM:<s@example.net>", b"RCPT TO:<b@example.com>"):
            client.say(line)
        answer = client.say(b"XFOO")
        expect(answer.startswith(within), f"before DATA XFOO hears {answer!r}")
        answer = _send(client, "upper", b"hello\r\n", begun=True)
        expect(answer.startswith(b"250"), f"the message hears {answer!r}")
        heard = [client.say(b"XFOO")[:3] for _ in range(20)]
        expect(heard == [b"502"] * 19 + [b"421"], f"twenty of them hear {heard}")
        client.close()
    sink.wait(2)
    bodies = [_body(m) for m in sink.messages()]
    expect(bodies == ["HELLO\n"] * 2, f"there arrived {bodies}")
    expect("mta/milter[" not in rig.log(), "the log complains about a filter")


class Rewriter:
    """tests/rig/rewriter.py by the system's python3, with what was unpacked."""

    def __init__(self, rig: Rig) -> None:
        self._rig = rig
        self._starts = 0
        self.socket = os.path.join(rig.directory, "rewriter.sock")

    def start(self, hears_data: bool = False) -> None:
        if os.path.exists(self.socket):
            os.unlink(self.socket)
        self._starts += 1
        environment = peer_environment()
        environment["PYTHONPATH"] = os.path.join(UNPACKED, "usr/lib/python3/dist-packages")
        program = os.path.join(ROOT, "tests/rig/rewriter.py")
        argv = ["/usr/bin/python3", program, f"unix:{self.socket}", *["data"] * hears_data]
        process: Process = self._rig.start(f"rewriter{self._starts}", "node", argv, env=environment)

        def listens() -> bool:
            expect(process.is_running, f"pymilter ended: {process.log()[-400:]}")
            return os.path.exists(self.socket)

        wait_until(listens, 10, "pymilter does not listen")


def _policies(*sockets: str) -> str:
    blocks = (f"{{policy: milter, socket: 'unix:{socket}'}}" for socket in sockets)
    return f"policies: [{', '.join(blocks)}]"


def _send(client: Client, do: str, body: bytes, begun: bool = False) -> bytes:
    """One message; with `begun` its envelope was given already."""
    envelope = () if begun else (b"MAIL FROM:<s@example.net>", b"RCPT TO:<b@example.com>")
    for line in (*envelope, b"DATA"):
        answer = client.say(line)
        if not answer or answer[:1] not in b"23":
            return answer
    header = f"From: <s@example.net>\r\nTo: <b@example.com>\r\nSubject: old\r\nX-Do: {do}\r\n\r\n"
    client.socket.sendall(header.encode() + body + b".\r\n")
    return client.reply()


def _do(message: Arrived) -> str:
    return message.header("X-Do").strip()


def _body(message: Arrived) -> str:
    """smtp-sink keeps a message in lines that end in LF, and puts fields of its own before it."""
    return message.text.partition("\n\n")[2].removesuffix("\n")
