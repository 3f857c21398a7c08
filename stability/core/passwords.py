"""Passwords in addresses. Settings and messages end in files and on terminals, so no password may be in them."""

import re

from stability.core.errors import StabilityError

# What stands before the host, up to the @. A password that was not encoded may have a slash in it, and behind a host's
# name only a port, which is a number, stands before the path.
_USER = re.compile(r"(?<=://)(?:[^/?#\s]*@|[^/@\s]+:(?!\d*/)\S*@)")


def hide_passwords(text: str) -> str:
    """Return a text whose addresses have no user and no password: `http://user:password@host` becomes `http://host`."""
    return _USER.sub("", text)


def refuse_password(setting: str, value: str) -> None:
    """Refuse an address with a user or a password in it.

    Args:
        setting: The name of the setting, for the message.
        value: Its value.

    Raises:
        StabilityError: There is one. The message does not show it.
    """
    if (shown := hide_passwords(value)) != value:
        raise StabilityError(
            f"{setting} holds a user name or a password, which would be written to files and logs. Give "
            f"{setting}={shown}, and set the environment variables MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN. For PostgreSQL: PGUSER and PGPASSWORD."
        )
