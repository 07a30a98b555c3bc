"""Makes `twistd mta` known to Twisted; everything else is imported when it is chosen."""

from twisted.application.service import ServiceMaker

mta = ServiceMaker(
    "mta",
    "mta.tap",
    "The message transfer agent that knows where it lives.",
    "mta",
)
