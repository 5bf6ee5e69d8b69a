"""Where the service is, and which key opens it."""

from __future__ import annotations

import os
from pathlib import Path

import httpx

DEFAULT_URL = "http://127.0.0.1:8000"
THIS_MACHINE = frozenset({"localhost", "127.0.0.1", "::1"})


def find_url(url: str | None = None) -> httpx.URL:
    """The address of the service: ``url``, else ``HEADSTART_URL``, else the local default.

    Raises:
        ValueError: If it is not an http(s) address, or carries a user name.
    """
    text = url or os.environ.get("HEADSTART_URL") or DEFAULT_URL
    try:
        parsed = httpx.URL(text.rstrip("/"))
    except httpx.InvalidURL as error:
        raise ValueError(f"{text!r} is not a URL: {error}") from error
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ValueError(f"{text!r} must be like {DEFAULT_URL} or https://headstart.example.org")
    if parsed.userinfo:
        raise ValueError("a URL with a user name in it is not accepted: give the key as api_key")
    return parsed


def is_on_this_machine(url: httpx.URL) -> bool:
    """Whether the address is a loopback address."""
    return url.host in THIS_MACHINE


def find_key(url: httpx.URL, key: str | None = None) -> str | None:
    """The key to send: ``key``, else ``HEADSTART_API_KEY``, else the admin key of a service on this machine.

    The admin key lies in ``$HEADSTART_DATA/admin.key`` or ``./var/admin.key``. It is looked for only when the
    address is on this machine, so that it never travels to another one.
    """
    given = (key or os.environ.get("HEADSTART_API_KEY") or "").strip()
    if given:
        return given
    if not is_on_this_machine(url):
        return None
    data = os.environ.get("HEADSTART_DATA")
    for folder in [data, "var"] if data else ["var"]:
        try:
            found = Path(folder, "admin.key").read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError):
            continue
        if found:
            return found
    return None
