"""SASLprep: what is typed in two ways is one password, and what cannot be told apart is none."""

from __future__ import annotations

import stringprep

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mta.wire.saslprep import prepare

LIGHT = settings(max_examples=300, deadline=None, derandomize=True)
TEXT = st.text(max_size=12) | st.text(
    st.sampled_from("aA1 \u00a0\u00ad\u00aa\u2168\u0627\u0661\u05d0\u0301\u200b\ud800\U0001f600"),
    max_size=6,
)


class SaslprepTests(SynchronousTestCase):
    def test_examples_of_the_rfc(self) -> None:
        """RFC 4013 section 3, all seven."""
        self.assertEqual(prepare("I\u00adX"), "IX")
        self.assertEqual(prepare("user"), "user")
        self.assertEqual(prepare("USER"), "USER")
        self.assertEqual(prepare("\u00aa"), "a")
        self.assertEqual(prepare("\u2168"), "IX")
        self.assertRaises(ValueError, prepare, "\u0007")
        self.assertRaises(ValueError, prepare, "\u06271")

    def test_direction(self) -> None:
        """From right to left: the whole text, from its first to its last character."""
        self.assertEqual(prepare("\u06271\u0628"), "\u06271\u0628")
        for text in ("1\u0627", "\u0627a\u0628"):
            self.assertRaises(ValueError, prepare, text)

    def test_blanks(self) -> None:
        """Every blank is the one that has a key; ASCII text is as it was."""
        self.assertEqual(prepare("a\u00a0b\u3000c"), "a b c")
        ascii_ = "".join(map(chr, range(0x20, 0x7F)))
        self.assertEqual(prepare(ascii_), ascii_)
        self.assertEqual(prepare(""), "")

    def test_later_than_unicode_3_2(self) -> None:
        """A character of today passes in a name that is looked up, not in a password."""
        self.assertRaises(ValueError, prepare, "\U0001f600")
        self.assertEqual(prepare("\U0001f600", is_query=True), "\U0001f600")

    @LIGHT
    @given(TEXT, st.booleans())
    def test_whatever_is_typed(self, text: str, is_query: bool) -> None:
        """Every text is refused in words without it, or becomes UTF-8 that stays as it is."""
        try:
            prepared = prepare(text, is_query=is_query)
        except ValueError as error:
            self.assertTrue(str(error).isascii())
            return
        self.assertEqual(prepare(prepared, is_query=is_query), prepared)
        self.assertEqual(prepared.encode().decode(), prepared)
        self.assertFalse(any(map(stringprep.in_table_c21_c22, prepared)))
