"""Addresses with a user or a password in them."""

import pytest

from stability.core.errors import StabilityError
from stability.core.passwords import hide_passwords, refuse_password


@pytest.mark.parametrize(
    "text",
    [
        "http://me:secret@host:5000/path",
        "https://secret@host",
        "https://secret:@host",
        "http://me:sec/secret@host",
        "postgresql+psycopg2://me:secret@host/db",
        "http://a,http://me:secret@host",
        "http://me:sec@secret@host",
    ],
)
def test_a_password_is_refused_and_not_shown(text: str) -> None:
    assert "secret" not in hide_passwords(text)
    assert "://host" in hide_passwords(text)
    with pytest.raises(StabilityError, match="MLFLOW_TRACKING_PASSWORD") as refused:
        refuse_password("tracking.uri", text)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "http://localhost:5000/a@b",
        "https://host/@team?mail=me@host",
        "sqlite:////home/me@host/mlflow.db",
        "sqlite:///a:b@c.db",
        "me@host:path",
        "see http://host or ask me@host",
    ],
)
def test_other_texts_are_not_changed(text: str) -> None:
    assert hide_passwords(text) == text
    refuse_password("tracking.uri", text)
