"""An intake whose one policy asks a mail filter of memory."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from twisted.internet.defer import Deferred

from mta.policy.milter import Milter, MilterSettings
from mta.policy.milter_outage import REPLIES
from mta.testing.policy_suite import sample_peers
from mta.testing.surroundings import MemorySurroundings
from tests.intake_ground import MESSAGE, House, address
from tests.memory_filter import FilterEnd, MemoryFilter

SOCKET = "unix:/run/filter.sock"
LATER = REPLIES["tempfail"]


class Ground:
    """An intake with one `milter` policy, and the filter that it asks."""

    def __init__(self, memory: MemoryFilter | None = None, **keys: Any) -> None:
        self.filter = MemoryFilter() if memory is None else memory
        self.surroundings = MemorySurroundings()
        self.surroundings.network.serve_service(SOCKET, self.filter)
        given_keys = MilterSettings.model_validate({"socket": SOCKET, **keys})
        self.policy = Milter(given_keys, self.surroundings)
        self.house = House((self.policy,))
        self.clock = self.surroundings.clock
        self.reception: Any = None
        self.patience_seconds = 0.0
        """How long a client waits for what does not come at once."""

    def wait(self, answer: Any, seconds: float = 0.0) -> Any:
        """What it comes to, once the memory network has delivered."""
        if not isinstance(answer, Deferred):
            return answer
        results: list[Any] = []
        answer.addBoth(results.append)
        self.clock.advance(seconds)
        for patience in (*[0.0] * 300, self.patience_seconds) * 3:  # once for each filter
            if results:
                return results[0]
            self.clock.advance(patience)
        raise AssertionError("no answer")

    def connect(self, **peer: Any) -> Any:
        """A client that has said HELO; what both came to."""
        house = self.house
        house.associations += 1
        whom = replace(sample_peers()[3], tls="", **peer)
        self.reception = house.intake.reception(house.tenure, whom)
        greeted = self.wait(self.reception.connected())
        return greeted, self.wait(self.reception.helo(b"client.example.net", "ESMTP"))

    def unknown(self, line: bytes) -> Any:
        return self.wait(self.reception.unknown(line))

    def envelope(self, *recipients: str, **parameters: bytes | None) -> list[Any]:
        sent = {key.upper().encode(): value for key, value in parameters.items()}
        answers = [self.wait(self.reception.mail(address("a@example.net"), sent))]
        for recipient in () if answers[0] else recipients or ("b@example.com",):
            answers.append(self.wait(self.reception.rcpt(address(recipient), {})))
        return answers

    def content(self, *pieces: bytes, chunked: bool = False) -> Any:
        reception = self.reception
        refused = self.wait(reception.bdat() if chunked else reception.data())
        if refused is not None:
            return refused
        for piece in pieces or (MESSAGE,):
            self.wait(reception.chunk(piece))
        answer = self.wait(reception.end(None))
        if answer.code == 250:
            reception.acknowledged()
        return answer

    def to_the_end(self) -> Deferred[Any]:
        """A whole message; what its end will be answered, once the filter has heard of it."""
        self.envelope()
        self.wait(self.reception.data())
        self.wait(self.reception.chunk(MESSAGE))
        answer: Deferred[Any] = self.reception.end(None)
        for _ in range(20):
            self.clock.advance(0)
        return answer

    def send(self, *pieces: bytes, **keys: Any) -> list[Any]:
        """A whole message: its envelope's answers, and its own."""
        answers = self.envelope()
        return answers if any(answers) else [*answers, self.content(*pieces, **keys)]

    @property
    def end(self) -> FilterEnd:
        return self.filter.ends[-1]

    @property
    def stored(self) -> bytes:
        return self.house.spool.stagings[-1].stored

    def lines(self) -> list[str]:
        return self.surroundings.notices()


def codes(answers: Any) -> list[int | None]:
    return [a and a.code for a in answers]
