"""LIMITS (RFC 9422) as Debian's Exim announces it: it is never asked for more than it takes."""

from __future__ import annotations

from collections import Counter

from tests.rig.exim import Exim
from tests.rig.ground import PEER, VIRTUAL, expect, wait_until
from tests.rig.node import Rig
from tests.rig.peers import Client

RECIPIENTS, MESSAGES = 3, 2


def scenario_exim(rig: Rig) -> None:
    """RCPTMAX divides a long list, MAILMAX ends the association; nobody is deferred, and nothing is refused."""
    exim = Exim(
        rig,
        limits_advertise_hosts="*",
        recipients_max=str(RECIPIENTS),
        recipients_max_reject="true",
        smtp_accept_max_per_connection=str(MESSAGES),
    ).start()
    _means_it(rig)
    rig.online()
    client = Client(rig)
    client.hello()
    crowd = [f"user{number}@example.com" for number in range(7)]
    expect(client.send("crowd", recipients=crowd).startswith(b"250"), "the long list is refused")
    wait_until(lambda: len(_people(exim)) == 7, 20, "the long list did not arrive")
    sizes = sorted(len(recipients) for _, recipients in exim.taken(VIRTUAL))
    expect(sizes == [1, 3, 3], f"the list of seven came in transactions of {sizes}")
    for number in range(20):
        expect(client.send(f"single-{number}").startswith(b"250"), "a single message is refused")
    wait_until(lambda: len(_people(exim)) == 27, 30, "the single messages did not arrive")
    expect(Counter(_people(exim)).most_common(1)[0][1] == 1, "somebody has a message twice")
    taken = Counter(port for port, _ in exim.taken(VIRTUAL))
    expect(max(taken.values()) == MESSAGES, f"messages by connection: {taken}")
    wait_until(lambda: rig.log().count("status=sent") == 27, 10, "not all is told sent")
    expect("status=deferred" not in rig.log(), "somebody was deferred")
    theirs = [line for line in exim.log().splitlines() if VIRTUAL in line]
    wrong = [line for line in theirs if "too many" in line or "rejected" in line]
    expect(not wrong, f"Exim complains of us: {wrong}")
    rig.note(f"27 recipients in {sum(taken.values())} transactions over {len(taken)} connections")


def _means_it(rig: Rig) -> None:
    """Whoever asks for more is refused the whole message."""
    client = Client(rig, PEER)
    client.reply()
    said = client.say(b"EHLO crowd.example.net")
    announced = f"250-LIMITS MAILMAX={MESSAGES} RCPTMAX={RECIPIENTS}".encode()
    expect(announced in said, f"Exim announces {said!r}")
    client.say(b"MAIL FROM:<sender@example.net>")
    answers = [client.say(b"RCPT TO:<user%d@example.com>" % number) for number in range(4)]
    codes = [answer[:3] for answer in answers]
    expect(codes == [b"250", b"250", b"250", b"552"], f"Exim answers {answers}")
    client.close()


def _people(exim: Exim) -> list[str]:
    return [one for _, recipients in exim.taken(VIRTUAL) for one in recipients]
