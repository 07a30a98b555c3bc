"""Golden dialogues: what a person at a terminal would read, and that no cut of TCP changes it."""

from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from mta.testing.transcript import every, parse, run

TRANSCRIPTS = Path(__file__).parent / "transcripts"


class TranscriptTests(SynchronousTestCase):
    def transcripts(self) -> list[tuple[str, str]]:
        found = [(path.name, path.read_text()) for path in sorted(TRANSCRIPTS.glob("*.txt"))]
        self.assertGreater(len(found), 40)
        return found

    def test_golden(self) -> None:
        """Every dialogue reads as it is written down."""
        for name, text in self.transcripts():
            self.assertEqual(run(text), text, name)

    def test_each_says_what_it_promises(self) -> None:
        """Every transcript opens with a sentence for people."""
        for name, text in self.transcripts():
            self.assertRegex(text, r"\A# .{20,}", name)

    def test_octet_by_octet(self) -> None:
        """Replies and events are the same when every octet arrives by itself."""
        for name, text in self.transcripts():
            if r"\*300000" in text:
                continue
            self.assertEqual(run(text, every(1)), text, name)

    def test_odd_pieces(self) -> None:
        """Replies and events are the same in pieces of 2, 3, 5, 7 and 1460 octets."""
        for name, text in self.transcripts():
            for octets in (2, 3, 5, 7, 1460):
                if octets < 1460 and r"\*300000" in text:
                    continue
                self.assertEqual(run(text, every(octets)), text, f"{name} by {octets}")

    def test_two_pieces_at_every_place(self) -> None:
        """Replies and events are the same wherever a piece of the dialogue is cut in two."""
        for name, text in self.transcripts():
            if r"\*" in text or len(text) > 2500:
                continue
            longest = max((len(line) for line in _pieces(text)), default=0)
            for at in range(1, longest):
                cut = run(text, lambda data, at=at: [data[:at], data[at:]])
                self.assertEqual(cut, text, f"{name} cut at {at}")

    def test_a_line_that_is_none(self) -> None:
        """A transcript with a line that nobody speaks is refused."""
        self.assertRaises(ValueError, parse, "side: responder\n\nX: hello\n")


def _pieces(text: str) -> list[str]:
    """What arrives together, about: neighbouring lines of the far end."""
    far = "C" if "side: initiator" not in text else "S"
    pieces = [""]
    for line in text.splitlines():
        if line.startswith((f"{far}:", f"{far}.")):
            pieces[-1] += line[3:] + "\r\n"
        else:
            pieces.append("")
    return pieces
