"""The credentials of a connector: from the file with the password to what an association says.

Law: the file is read for each association, on a worker thread, and must be closed to others then
too. What is wrong with it is said by name; what it holds is not.
"""

from __future__ import annotations

import secrets

from mta.association.smtp_settings import AuthSettings
from mta.errors import MTAError
from mta.interfaces import IExecutor
from mta.settings import SecretFile, parse_secret_file
from mta.wire.sasl_client import Credentials
from mta.wire.smtp.client_auth import Authentication

LONGEST_PASSWORD = 4096
"""Octets: in base64 it still fits into the 12288 of a response."""
_NONCE_OCTETS = 18
_REMEDY = "mail waits until it can be used; nothing has to be restarted"


class UnusableSecret(MTAError):
    """The file with the password cannot be used as it is."""


async def identify(settings: AuthSettings, executor: IExecutor) -> Authentication:
    """What one association says of who we are, with a nonce of its own. @raise UnusableSecret."""
    password = await executor.submit(read_password, settings.password_file)
    nonce = secrets.token_urlsafe(_NONCE_OCTETS).encode()
    credentials = Credentials(settings.user, password, nonce)
    return Authentication(credentials, settings.mechanisms, settings.plaintext == "allow")


def read_password(file: SecretFile) -> str:
    """The one line that it holds. Blocking. @raise UnusableSecret: missing, open to others, empty,
    of more lines, longer than LONGEST_PASSWORD, with NUL, or no UTF-8.
    """
    what = "the password-file cannot be used"
    try:
        parse_secret_file(file.path)  # it may have changed since the configuration was read
        password = file.read().decode("utf-8")
    except UnicodeDecodeError:
        raise UnusableSecret(what, f"{file.path!r} is no UTF-8", _REMEDY) from None
    except ValueError as fault:
        raise UnusableSecret(what, str(fault), _REMEDY) from None
    except OSError as fault:
        raise UnusableSecret(what, f"{file.path!r}: {fault.strerror}", _REMEDY) from None
    why = ""
    if not password:
        why = "is empty"
    elif any(octet in password for octet in "\r\n\0"):
        why = "holds more than a password: one line, without NUL"
    elif len(password.encode()) > LONGEST_PASSWORD:
        why = f"has more than {LONGEST_PASSWORD} octets"
    if why:
        raise UnusableSecret(what, f"{file.path!r} {why}", _REMEDY)
    return password
