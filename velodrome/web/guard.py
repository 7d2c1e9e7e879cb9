"""Who may read the page: this machine, with the token, from the page itself.

A server on loopback can be reached by every page that a browser shows. Three things stand against it. A foreign page cannot send our cookie
(SameSite=Strict, https://datatracker.ietf.org/doc/html/draft-ietf-httpbis-rfc6265bis) nor knows the token. A name that was rebound to
127.0.0.1 arrives with that name as its Host, which is refused. And the browser says from where a request comes (Origin, Sec-Fetch-Site).
"""

import ipaddress
import secrets
from collections.abc import Iterable, Mapping
from http.cookies import CookieError, SimpleCookie

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data: blob:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}
NAMES = ("localhost", "127.0.0.1", "[::1]")


def loopback(host: str) -> str:
    """The address to listen on; a ValueError for one that other machines could reach."""
    try:
        address = ipaddress.ip_address({"localhost": "127.0.0.1"}.get(host, host))
    except ValueError as error:
        raise ValueError(f"--host must be an address of this machine, got {host!r}: write 127.0.0.1 or ::1.") from error
    if not address.is_loopback:
        hint = "leave it at 127.0.0.1, and from another machine forward the port: ssh -L 8000:127.0.0.1:PORT"
        raise ValueError(f"--host must be a loopback address, got {host}, which others could reach: {hint}.")
    return str(address)


class Guard:
    """Decides about a request before anything else reads it. `token` is drawn for each server, `cookie` is the name under which a browser keeps it.

    The cookie's name holds the port, because browsers keep cookies for a host whatever its port, and two servers may run side by side.
    """

    def __init__(self, host: str, port: int, token: str = ""):
        self.token = token or secrets.token_urlsafe(24)
        self.cookie = f"velodrome-{port}"
        self.names = {*NAMES, f"[{host}]" if ":" in host else host}

    def refusal(self, method: str, headers: Iterable[tuple[bytes, bytes]], query: Mapping[str, str], fresh: bool) -> tuple[int, str] | None:
        """(status, sentence) for a request that is refused, None for one that may go on. `fresh`: it asks for the page, perhaps with the token."""
        given = [(name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in headers]
        sent = dict(given)
        if method not in ("GET", "HEAD"):
            return 405, "This server only reads: use GET."
        host = sent.get("host", "")
        if sum(name == "host" for name, _ in given) != 1 or _name(host) not in self.names:
            return 403, "This server answers to the names of this machine only: use the address it printed."
        if sent.get("origin", f"http://{host}") != f"http://{host}":
            return 403, "Another page may not read this server."
        if not fresh and sent.get("sec-fetch-site", "none") not in ("same-origin", "none"):
            return 403, "Another page may not read this server."
        if not (self.has_cookie(sent.get("cookie", "")) or (fresh and self.is_token(query.get("token", "")))):
            return 401, "Open the address that `velodrome serve` printed: it holds the token."
        return None

    def is_token(self, text: str) -> bool:
        """Whether the text is the token, in a time that does not tell how much of it is right."""
        return secrets.compare_digest(text.encode(), self.token.encode())

    def has_cookie(self, header: str) -> bool:
        """Whether a Cookie header holds the token."""
        try:
            found = SimpleCookie(header).get(self.cookie)
        except CookieError:
            return False
        return found is not None and self.is_token(found.value)

    @property
    def set_cookie(self) -> str:
        """The header that hands the token to the browser: not readable by scripts, never sent by another site, gone with the browser."""
        return f"{self.cookie}={self.token}; Path=/; HttpOnly; SameSite=Strict"


def _name(host: str) -> str:
    """A Host header without its port."""
    if host.startswith("["):
        return host[: host.find("]") + 1]
    return host.partition(":")[0].lower()
