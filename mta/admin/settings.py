"""The `log:`, `admin:` and `tls-reports:` blocks of the configuration."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, field_validator

from mta.settings import Boolean, Count, Duration, Settings, Size

UNIX_PATH_OCTETS = 107
"""What fits into sockaddr_un beside the final NUL; a longer path cannot be bound."""


def _unix_path(path: str) -> str:
    if not path:
        raise ValueError("a path is missing")
    if len(path.encode()) > UNIX_PATH_OCTETS:
        raise ValueError(f"{path!r} is longer than {UNIX_PATH_OCTETS} octets, the kernel's limit")
    return path


UnixPath = Annotated[str, AfterValidator(_unix_path)]


class LogSettings(Settings):
    """`log:`"""

    format: Literal["postfix", "json"] = Field(
        default="postfix",
        description="postfix: the lines that pflogsumm, fail2ban and exporters read; "
        "json: one object a line, with the same fields.",
    )
    syslog_name: str = Field(
        default="mta",
        pattern=r"^[A-Za-z0-9._/-]{1,48}$",
        description="The NAME of NAME/smtp[pid].",
    )
    to: str = Field(
        default="auto",
        description="stderr, stdout, syslog, or the path of a file (reopened on SIGUSR1). "
        "auto: syslog when run by systemd or as a daemon, else stderr.",
    )
    level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Notices below this level are not written; mail always is."
    )
    buffer: Count = Field(
        default=100_000,
        description="Lines that wait for a slow log; more are dropped, counted and reported.",
    )

    @field_validator("to")
    @classmethod
    def _known_target(cls, value: str) -> str:
        if value in {"auto", "stderr", "stdout", "syslog"} or value.startswith("/"):
            return value
        raise ValueError(
            f"{value!r} is no log target: write stderr, stdout, syslog, auto or an absolute path"
        )


class AdminSettings(Settings):
    """`admin:`"""

    socket: UnixPath = Field(
        default="/run/mta/control.sock",
        description="Operators' commands: 0660 for the group below where that exists, else 0600.",
    )
    submit_socket: UnixPath = Field(
        default="/run/mta/submit.sock",
        description="Submission by this machine's programs (sendmail, mta send): 0666.",
    )
    group: str = Field(
        default="mta-admin", description="Its members may give commands, beside root and our uid."
    )
    submit_size: Size = Field(
        default=50 * 2**20, description="The largest message that a local program may submit."
    )
    submit_rate: Count = Field(
        default=600, description="Messages that one local user may submit in a minute."
    )
    submit_connections: Count = Field(
        default=50, description="Connections of one local user to the submission socket at a time."
    )
    http: str | None = Field(
        default=None,
        description="ADDRESS:PORT on loopback for /metrics, /livez, /readyz and /status.json, "
        "read-only; off unless given.",
    )
    http_process_metrics: Boolean = Field(
        default=True, description="Show memory and CPU of the process on /metrics."
    )
    watchdog: Duration = Field(
        default=0.0,
        description="How often to tell systemd that the reactor runs; 0: half of WatchdogSec.",
    )

    @field_validator("http")
    @classmethod
    def _loopback(cls, value: str | None) -> str | None:
        if value is not None:
            http_endpoint(value)
        return value


class TlsReportSettings(Settings):
    """`tls-reports:`"""

    directory: str | None = Field(
        default=None,
        pattern=r"^/",
        description="Keep what came of TLS with the servers of each domain that mail went to by MX,"
        " in RFC 8460's form: a file for each domain and day, below this directory of this node"
        " (below node.state-directory, say). They are data for a program that sends them; off"
        " unless given.",
    )
    keep: Duration = Field(default=1209600.0, ge=86400.0, description="For how long: whole days.")
    organization: str = Field(
        default="",
        max_length=200,
        description="The organization-name in them; by default the network name.",
    )
    contact: str = Field(
        default="", max_length=320, description="The contact-info; by default the postmaster."
    )


def http_endpoint(value: str) -> tuple[str, int]:
    """Host and port of `127.0.0.1:8025` or `[::1]:8025`. @raise ValueError: not on loopback."""
    host, colon, port = value.rpartition(":")
    bare = host.removeprefix("[").removesuffix("]")
    try:
        address = ip_address(bare)
    except ValueError:
        raise ValueError(f"{value!r}: expected ADDRESS:PORT such as 127.0.0.1:8025") from None
    if not colon or not port.isascii() or not port.isdigit() or not 1 <= int(port) <= 65535:
        raise ValueError(f"{value!r}: expected ADDRESS:PORT such as 127.0.0.1:8025")
    if not address.is_loopback:
        raise ValueError(f"{bare} is not loopback; without TLS and passwords only loopback is safe")
    if address.version == 6 and not host.startswith("["):
        raise ValueError(f"{value!r}: write [{bare}]:{port}")
    return str(address), int(port)
