"""The types of configuration blocks take what a person writes, and refuse the rest as ValueError."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mta.model import Bridgehead
from mta.resolver.settings import parse_name_server
from mta.settings import (
    parse_bool,
    parse_bridgehead,
    parse_duration,
    parse_ip,
    parse_network,
    parse_port,
    parse_secret_file,
    parse_size,
    parse_virtual_address,
)

PARSERS = (
    *(parse_bool, parse_bridgehead, parse_duration, parse_ip, parse_network, parse_port),
    *(parse_secret_file, parse_size, parse_virtual_address, parse_name_server),
)
SCALARS = st.text(max_size=12) | st.text("0123456789.:[]/sdmhKiB ", max_size=24)
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["address", "external", "bind", "required", "host", "port", "preference"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=6,
)


class SettingsTests(SynchronousTestCase):
    @given(ANYTHING)
    @settings(max_examples=200, deadline=None, derandomize=True)
    def test_anything(self, value: Any) -> None:
        """Whatever stands there, it is a value or a ValueError that says so: nothing else."""
        for parse in PARSERS:
            try:
                parse(value)
            except ValueError as error:
                self.assertTrue(str(error), parse.__name__)

    def test_durations(self) -> None:
        """Durations have units, and may be sums."""
        written = ("500ms", "30s", "5m", "2h", "4d", "1w", "1h30m", " 1.5 s ")
        seconds = [0.5, 30.0, 300.0, 7200.0, 345600.0, 604800.0, 5400.0, 1.5]
        self.assertEqual(seconds, [parse_duration(text) for text in written])
        for text in ("30", "", "s", "-1s", "1x", "1s x", "9" * 400 + "s"):
            self.assertRaises(ValueError, parse_duration, text)

    def test_sizes(self) -> None:
        """Sizes have units of a thousand or of 1024, or none."""
        written = ("512", "512B", "1KB", "64KiB", "25MiB", "1.5GiB")
        octets = [512, 512, 1000, 65536, 26214400, 1610612736]
        self.assertEqual(octets, [parse_size(text) for text in written])
        for text in ("", "-1", "1kib", "1 MiB x", "9" * 400):
            self.assertRaises(ValueError, parse_size, text)

    def test_booleans(self) -> None:
        """true and false, and no other word."""
        self.assertIs(True, parse_bool("true"))
        self.assertIs(False, parse_bool("false"))
        for value in ("yes", "no", "on", "1", "True", "", [], {}):
            self.assertRaises(ValueError, parse_bool, value)

    def test_networks(self) -> None:
        """A network without host bits; a single address is one."""
        self.assertEqual(ip_network("192.0.2.7/32"), parse_network("192.0.2.7"))
        error = self.assertRaises(ValueError, parse_network, "192.0.2.1/24")
        self.assertIn("host bits", str(error))

    def test_bridgeheads(self) -> None:
        """A bridgehead is written in any of the ways that people write one."""
        for written, meant in (
            ("192.0.2.20:2525", Bridgehead("192.0.2.20", 2525)),
            ("192.0.2.20", Bridgehead("192.0.2.20", 25)),
            ("[2001:db8::20]:26", Bridgehead("2001:db8::20", 26)),
            ("[2001:db8::20]", Bridgehead("2001:db8::20", 25)),
            ("2001:db8::20", Bridgehead("2001:db8::20", 25)),
            ("Hub.Example.ORG.", Bridgehead("hub.example.org", 25)),
            ({"host": "hub", "port": "26", "preference": "5"}, Bridgehead("hub", 26, 5)),
        ):
            self.assertEqual(meant, parse_bridgehead(written))
        for value in (
            "",
            "192.0.2.300",
            "a:b",
            "[::1",
            "[::1]x",
            "-a",
            {"hots": "a"},
            {"port": "1"},
        ):
            self.assertRaises(ValueError, parse_bridgehead, value)

    def test_virtual_addresses(self) -> None:
        """One address, or two sides of one family behind address translation."""
        address = parse_virtual_address({"external": "203.0.113.7", "bind": "10.0.0.5"})
        self.assertEqual(ip_address("10.0.0.5"), address.bind)
        self.assertTrue(address.required)
        self.assertFalse(parse_virtual_address({"address": "::1", "required": "false"}).required)
        for value in (
            {"external": "203.0.113.7", "bind": "::1"},
            {"external": "203.0.113.7"},
            {"address": "::1", "bind": "::1"},
            {"address": "::1", "required": "no"},
            {},
            "x",
        ):
            self.assertRaises(ValueError, parse_virtual_address, value)

    def test_name_servers(self) -> None:
        """A name server is an IP address, with a port if it is not 53."""
        for written, meant in (
            ("192.0.2.53", Bridgehead("192.0.2.53", 53)),
            ("127.0.0.1:5353", Bridgehead("127.0.0.1", 5353)),
            ("2001:db8::53", Bridgehead("2001:db8::53", 53)),
            ("[2001:db8::53]:54", Bridgehead("2001:db8::53", 54)),
        ):
            self.assertEqual(meant, parse_name_server(written))
        for text in ("ns.example.org", "", "[::1", "[::1]53", "192.0.2.53:0"):
            self.assertRaises(ValueError, parse_name_server, text)
