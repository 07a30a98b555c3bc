"""Every error that this MTA raises on purpose says what, why and what to do, in that order.

An operator reads `str(error)`. A peer reads only `reply` and `enhanced` of a `PermanentFailure`
or a `TransientFailure`: nothing of our insides crosses the wire.

Local faults (we broke a rule) and remote faults (they did) are two classes; so are permanent and
transient ones; so are the five ways in which a store can fail.
"""

from __future__ import annotations

import os


class MTAError(Exception):
    """What is wrong, why, and what to do about it.

    `exit_code` is the sysexits.h code with which a process that cannot go on ends.
    """

    exit_code: int = os.EX_SOFTWARE

    def __init__(self, what: str, why: str = "", remedy: str = "") -> None:
        super().__init__(what, why, remedy)
        self.what = what
        self.why = why
        self.remedy = remedy

    def __str__(self) -> str:
        text = self.what
        if self.why:
            text += f": {self.why}"
        if self.remedy:
            text += f" ({self.remedy})"
        return text


class ConfigurationError(MTAError):
    """The configuration cannot be used; nothing was started."""

    exit_code = os.EX_CONFIG


class StartRefused(MTAError):
    """A fact of this machine forbids the start. The exit code names the kind of fact."""

    exit_code = os.EX_UNAVAILABLE

    def __init__(
        self, what: str, why: str = "", remedy: str = "", exit_code: int = os.EX_UNAVAILABLE
    ) -> None:
        super().__init__(what, why, remedy)
        self.exit_code = exit_code


class PluginError(MTAError):
    """A plugin was not found, is doubled, is broken, or raised; its name stands in `what`."""

    exit_code = os.EX_CONFIG


class TenureRevoked(MTAError):
    """The tenure under which this was asked has ended. Whoever holds it stops."""

    exit_code = os.EX_TEMPFAIL


class ClusterNotInitialised(MTAError):
    """The virtual server is not ours, or not yet: law 2 of the house does not hold."""

    exit_code = os.EX_TEMPFAIL


class AddressAway(ClusterNotInitialised):
    """An address that was to be used is on no interface of this node, or not any more."""

    exit_code = os.EX_UNAVAILABLE


class GrantLost(MTAError):
    """The authority no longer says that this node owns the virtual server."""

    exit_code = os.EX_TEMPFAIL


class WrongSourceAddress(MTAError):
    """A connected socket does not bear an address of the virtual server. It was aborted."""

    exit_code = os.EX_SOFTWARE


class Failure(MTAError):
    """A transfer failed. `code` and `enhanced` are what a peer may be told (RFC 5321, RFC 3463)."""

    code: int = 451
    enhanced: str = "4.3.0"

    def __init__(
        self,
        what: str,
        why: str = "",
        remedy: str = "",
        *,
        code: int | None = None,
        enhanced: str | None = None,
    ) -> None:
        super().__init__(what, why, remedy)
        if code is not None:
            self.code = code
        if enhanced is not None:
            self.enhanced = enhanced


class TransientFailure(Failure):
    """It may work later (4yz)."""

    exit_code = os.EX_TEMPFAIL


class PermanentFailure(Failure):
    """It will not work as it stands (5yz)."""

    code = 554
    enhanced = "5.0.0"
    exit_code = os.EX_UNAVAILABLE


class NotProven(PermanentFailure):
    """Under TLS a server did not prove who it is. `result` is RFC 8460's word for it (4.3)."""

    def __init__(self, what: str, why: str = "", *, result: str) -> None:
        super().__init__(what, why)
        self.result = result


class Unfit(PermanentFailure):
    """This far end lacks what the message needs (an extension); another of its kind may have it."""


class LocalProtocolError(MTAError):
    """Our own code drove a protocol machine wrongly. Always a defect of ours."""


class RemoteProtocolError(MTAError):
    """The peer broke the protocol. The association ends or answers, in a defined state."""


class SpoolError(MTAError):
    """A store could not do what was asked. One of the five below."""

    exit_code = os.EX_IOERR


class Unavailable(SpoolError):
    """The store cannot be reached or used now: answer 451, try again later."""

    exit_code = os.EX_TEMPFAIL


class Full(SpoolError):
    """No room above the reserve: answer 452 to new mail; outcomes are still recorded."""

    exit_code = os.EX_TEMPFAIL


class Fenced(SpoolError):
    """A newer epoch exists. Stop at once: no reply, no act."""

    exit_code = os.EX_TEMPFAIL


class Unknown(SpoolError):
    """Whether the commit became durable is not known: probe by queue id before anything else."""

    exit_code = os.EX_TEMPFAIL


class Corrupt(SpoolError):
    """What lies on disk is not what was written. The text names the file and the offset."""

    exit_code = os.EX_DATAERR
