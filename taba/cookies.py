"""What a browser shows instead of an `Authorization` header: a cookie that `POST /login` sets. Text in, text out.

1. The cookie has the token itself: every Server that knows the token knows the cookie, nothing of it is kept, and a token that is taken
   out of the file is out at once. No script of a page can read it.
2. A cookie goes along with whatever page makes a browser ask. It counts where the very origin that is asked does; else nobody asks.
3. A header goes before a cookie.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from urllib.parse import urlsplit

from taba.tokens import is_token

COOKIE = "taba"
SAFE_COOKIE = "__Host-taba"  # over TLS: browsers take it from no other host of the domain, and never without TLS
READING = ("GET", "HEAD")
OWN = ("same-origin", "none")  # what browsers say of who makes them ask: the page itself, or a person


def token_shown(headers: Mapping[str, Sequence[str]], method: str) -> str | None:
    """The token in the cookies of a request; None where there is none, or where another page than this Server's makes a browser ask.

    `headers`: all values of `cookie`, `origin`, `host` and `sec-fetch-site`, as they came.
    """
    found: dict[str, str] = {}
    for value in headers["cookie"]:
        for pair in reversed(value.split(";")):  # of two of one name in a header the first counts
            name, equals, of_name = pair.partition("=")
            if equals:
                found[name.strip()] = of_name.strip()
    token = found.get(SAFE_COOKIE) or found.get(COOKIE)
    if token is None or not is_token(token):
        return None
    if any(site not in OWN for site in headers["sec-fetch-site"]):
        return None
    origins, hosts = headers["origin"], headers["host"]
    if not origins:
        return token if method in READING else None
    return token if len(origins) == len(hosts) == 1 and _place_of(origins[0]) == hosts[0].lower() else None


def cookie_of(token: str, is_safe: bool) -> str:
    """The `Set-Cookie` that has a browser show `token` until it is closed."""
    return f"{SAFE_COOKIE if is_safe else COOKIE}={token}; Path=/; HttpOnly; SameSite=Strict" + ("; Secure" if is_safe else "")


def no_cookies() -> list[str]:
    """The `Set-Cookie`s that have a browser forget."""
    return [f"{cookie_of('', is_safe)}; Max-Age=0" for is_safe in (False, True)]


def is_safe_origin(origin: str | None) -> bool:
    """Whether the page that asks came over TLS, whoever ended that on the way."""
    return origin is not None and origin.lower().startswith("https://")


def _place_of(origin: str) -> str | None:
    """Host and port of an origin as browsers say them in `Host`; None for what is none."""
    try:
        return urlsplit(origin).netloc.lower() or None
    except ValueError:
        return None
