"""The `queue:` block: how long messages are tried, how often, and how many at once; and what
intake asks of a message.

Law: values and their bounds only; schedule, settle and intake read them.
RFC 5321 4.5.4.1 (retry for at least 4 to 5 days, half an hour between attempts later on).
"""

from __future__ import annotations

from pydantic import Field, field_validator, model_validator

from mta.settings import Boolean, Count, Duration, Settings, Size


class QueueSettings(Settings):
    """Retry, expiry and the bounds of what is active in memory."""

    lifetime: Duration = Field(
        default=432_000.0,
        description="A message that could not be delivered for so long is returned to its sender.",
    )
    bounce_lifetime: Duration = Field(
        default=86_400.0,
        description="The same for messages with the null sender, such as delivery reports.",
    )
    backoff: tuple[Duration, ...] = Field(
        default=(300.0, 600.0, 1200.0, 2400.0, 3600.0),
        description="Pauses between one message's attempts; the last one repeats until it expires.",
    )
    jitter: float = Field(
        default=0.1,
        ge=0.0,
        le=0.5,
        description="Each pause is longer or shorter by up to this share of it, at random, so that"
        " messages deferred together do not come back together.",
    )
    delay_warning: Duration = Field(
        default=0.0,
        description="Tell the sender once when a message is still queued after so long. 0s: never.",
    )
    active_limit: Count = Field(
        default=20_000,
        description="Messages in work at once; all others wait in the spool, not in memory.",
    )
    associations: Count = Field(
        default=1_000,
        description="Outbound associations at once, over all connectors.",
    )
    idle: Duration = Field(
        default=5.0,
        description="How long an outbound association without work stays open for more.",
    )
    messages_per_association: Count = Field(
        default=1_000,
        description="Messages sent over one association before a new one is opened.",
    )
    destination_retry: Duration = Field(
        default=30.0,
        description="First pause before an unreachable destination is tried again with one"
        " message; doubled with each failure up to the longest pause of `backoff`.",
    )

    @field_validator("backoff")
    @classmethod
    def _some_pause(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not value:
            raise ValueError("give at least one pause, such as [5m, 10m, 20m, 40m, 1h]")
        for pause in value:
            if pause < 1.0:
                raise ValueError(f"a pause of {pause:g}s hammers the peer: 1s is the least")
        return value

    @field_validator("lifetime", "bounce_lifetime", "destination_retry")
    @classmethod
    def _positive(cls, value: float) -> float:
        if value <= 0.0:
            raise ValueError("must be longer than 0s")
        return value

    @model_validator(mode="after")
    def _warning_before_expiry(self) -> QueueSettings:
        if self.delay_warning and self.delay_warning >= self.lifetime:
            raise ValueError(
                "delay-warning must be shorter than lifetime, or 0s for no warning at all"
            )
        return self


class IntakeSettings(Settings):
    """What is asked of a message before it is accepted."""

    hop_limit: Count = Field(
        default=100,
        description="A message with more Received fields than this is going round in circles and"
        " is refused (RFC 5321 6.3 asks for at least 100).",
    )
    header_limit: Size = Field(
        default=262_144,
        ge=4096,
        description="How much of a message is looked at as its header, in memory.",
    )
    received_client: Boolean = Field(
        default=True,
        description="Say in our Received field who sent us the message. false hides the names and"
        " addresses of the clients in relay-from; all others are always named.",
    )
    transaction_lifetime: Duration = Field(
        default=864_000.0,
        description="How long a transaction that a bridgehead in checkpoint-from gave a name to is"
        " told from a new one. Must be longer than a message may wait there: `queue.lifetime`.",
    )
    policy_timeout: Duration = Field(
        default=60.0,
        gt=0.0,
        le=240.0,
        description="How long a policy may take for one answer before the client is asked to try"
        " again later.",
    )
