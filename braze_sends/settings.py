"""Arguments and environment to one frozen ``Settings``. Whatever is wrong is said here, at once."""

from __future__ import annotations

import enum
import hashlib
import ipaddress
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, Final
from urllib.parse import urlsplit

import attrs

from braze_sends.errors import ConfigurationError

#: Braze's REST endpoints, https://www.braze.com/docs/api/basics/#endpoints. New ones appear, so
#: any other URL is accepted as well; there is no US-09.
INSTANCES: Mapping[str, str] = {
    **{f"US-0{n}": f"https://rest.iad-0{n}.braze.com" for n in range(1, 9)},
    "US-10": "https://rest.us-10.braze.com",
    "EU-01": "https://rest.fra-01.braze.eu",
    "EU-02": "https://rest.fra-02.braze.eu",
    **{f"{a}-01": f"https://rest.{a.lower()}-01.braze.com" for a in ("AU", "ID", "JP", "KR")},
}  # fmt: skip


#: The bare name of one of these hosts, or of one that is not in the list yet.
_REST_HOST = re.compile(r"rest(\.[a-z0-9-]+)+\.braze\.(com|eu)/*")


#: What the client sets itself, or what HTTP sets for one connection alone.
OUR_HEADERS = {
    "accept", "accept-encoding", "authorization", "connection", "content-encoding",
    "content-length", "content-type", "expect", "host", "proxy-authorization", "te", "trailer",
    "transfer-encoding", "upgrade", "user-agent",
}  # fmt: skip

#: A name of a header, RFC 9110 section 5.1.
_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
#: A value without blanks at its ends, RFC 9110 section 5.5; in ASCII, as all else is opaque.
_VALUE = re.compile(r"[\x21-\x7e]([\x20-\x7e\t]*[\x21-\x7e])?")


class Unset(enum.Enum):
    """The type of ``UNSET``, which stands for an argument that was left out."""

    UNSET = "…"

    def __repr__(self) -> str:
        return self.value


#: An argument that was left out: the client's own value holds. ``None`` is a value.
UNSET: Final = Unset.UNSET


#: A shorter key is cut out of a text only where it stands by itself. Braze's are 36 characters; a
#: key such as "e" is a test's. Cut out everywhere it would leave "not ***nown" of a message, and
#: inside a word it tells nobody anything.
SHORT_KEY = 6


class ApiKey:
    """A REST API key that shows itself to nobody: not in ``repr``, not in a pickle.

    Not an attrs class, since ``attrs.asdict`` prints a field that ``repr=False`` hides.
    """

    __slots__ = ("_pattern", "_value")

    def __init__(self, value: object) -> None:
        self._value = _checked_key(value)
        pattern = re.escape(self._value)
        if len(self._value) < SHORT_KEY:
            pattern = f"(?<![a-z0-9]){pattern}(?![a-z0-9])"
        self._pattern = re.compile(pattern, re.IGNORECASE)

    def __repr__(self) -> str:
        return "ApiKey(***)"

    def __reduce__(self) -> Any:
        raise TypeError("an API key is not to be pickled")

    def authorization(self) -> str:
        """The value of the ``Authorization`` header."""
        return f"Bearer {self._value}"

    def scrub(self, text: str) -> str:
        """``text`` without the key: a 401 of Braze's echoes it whole."""
        return self._pattern.sub("***", text)

    def digest(self) -> str:
        """A name for the key from which the key cannot be told."""
        return hashlib.blake2b(self._value.encode(), digest_size=8).hexdigest()


def _checked_key(value: object) -> str:
    if not isinstance(value, str):
        raise ConfigurationError(f"api_key must be a string, not {type(value).__name__}")
    if not value.strip():
        raise ConfigurationError(
            "no API key: pass api_key=… or set BRAZE_API_KEY to a key with the permission "
            "sends.id.create"
        )
    if value[0] in "\"'" or value[-1] in "\"'":
        raise ConfigurationError(
            "api_key is wrapped in quotes; Braze would answer 401. Remove them"
        )
    if not value.isascii() or not value.isprintable() or " " in value:
        raise ConfigurationError(
            "api_key contains spaces, control or non-ASCII characters; give the bare key, without "
            "'Bearer' and without a line break"
        )
    return value


@attrs.frozen(kw_only=True)
class Settings:
    """What a client was told, checked."""

    api_key: ApiKey
    base_url: str
    workspace: str
    max_retries: int
    max_rate_limit_wait: float | None
    daily_limit: int | None
    send_id_factory: Callable[[], str] | None
    default_headers: Mapping[str, str] = attrs.field(repr=False)
    user_agent: str | None

    @classmethod
    def of(
        cls,
        environ: Mapping[str, str],
        *,
        api_key: str | None,
        base_url: str | None,
        workspace: str | None,
        max_retries: int,
        max_rate_limit_wait: float | None,
        daily_limit: int | None,
        send_id_factory: Callable[[], str] | None,
        allow_http_host: str | None = None,
        default_headers: Mapping[str, str] | None = None,
        user_agent: str | None = None,
    ) -> Settings:
        """Check every argument, reading ``environ`` where one is ``None``.

        Raises:
            ConfigurationError: an argument is unusable; the message says what to do.
        """
        key = ApiKey(environ.get("BRAZE_API_KEY", "") if api_key is None else api_key)
        if allow_http_host is None:
            allow_http_host = environ.get("BRAZE_SENDS_ALLOW_HTTP_HOST", "").strip() or None
        url = checked_base_url(
            environ.get("BRAZE_BASE_URL", "") if base_url is None else base_url, allow_http_host
        )
        if workspace is None:
            workspace = f"{urlsplit(url).netloc}:{key.digest()}"
        elif not isinstance(workspace, str) or not workspace.strip() or not workspace.isprintable():
            raise ConfigurationError(
                "workspace must be a non-empty printable string; leave it out for one of each key"
            )
        if send_id_factory is not None and not callable(send_id_factory):
            raise ConfigurationError("send_id_factory must be callable, or None")
        return cls(
            api_key=key,
            base_url=url,
            workspace=workspace,
            max_retries=checked_count("max_retries", max_retries),
            max_rate_limit_wait=checked_wait(max_rate_limit_wait),
            daily_limit=None if daily_limit is None else checked_count("daily_limit", daily_limit),
            send_id_factory=send_id_factory,
            default_headers=_checked_headers(default_headers, key),
            user_agent=None if user_agent is None else _checked_user_agent(user_agent, key),
        )


def _checked_headers(given: object, key: ApiKey) -> Mapping[str, str]:
    """``default_headers``, none of which is for the client to set. No message shows a value."""
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise ConfigurationError(
            f"default_headers must be a mapping of names to values, not {type(given).__name__}"
        )
    for name, value in given.items():
        if not isinstance(name, str) or not _NAME.fullmatch(name) or key.scrub(name) != name:
            raise ConfigurationError(
                "a name in default_headers is not the name of a header; use ASCII letters, digits "
                "and hyphens"
            )
        if name.lower() in OUR_HEADERS:
            instead = "; pass user_agent=…" if name.lower() == "user-agent" else ""
            raise ConfigurationError(
                f"default_headers must not have {name}: the client sets it{instead}"
            )
        _check_value(f"default_headers[{name!r}]", value, key)
    return dict(given)


def _checked_user_agent(value: object, key: ApiKey) -> str:
    _check_value("user_agent", value, key)
    return str(value)


def _check_value(name: str, value: object, key: ApiKey) -> None:
    if not isinstance(value, str) or not _VALUE.fullmatch(value):
        raise ConfigurationError(
            f"{name} must be printable ASCII text, without blanks at its ends and line breaks"
        )
    if key.scrub(value) != value:
        raise ConfigurationError(f"{name} must not hold the API key; the client sends it itself")


def checked_base_url(value: object, allow_http_host: object = None) -> str:
    """``value``, an instance name or a URL, as a URL without a trailing slash.

    Args:
        value: what the caller gave.
        allow_http_host: the one host, besides loopback, that may be asked over plain http.

    Raises:
        ConfigurationError: neither a known instance nor a URL the key may travel to; or
            ``allow_http_host`` is not the bare name of a host that may be named there.
    """
    http_host = None if allow_http_host is None else _checked_http_host(allow_http_host)
    if not isinstance(value, str):
        raise ConfigurationError(f"base_url must be a string, not {type(value).__name__}")
    text = value.strip()
    known = ", ".join(INSTANCES)
    if not text:
        raise ConfigurationError(
            "no base URL: set BRAZE_BASE_URL, or pass base_url (--base-url), as a URL or one of "
            f"{known}"
        )
    if text.upper() in INSTANCES:
        return INSTANCES[text.upper()]
    if _REST_HOST.fullmatch(text.lower()):
        return f"https://{text.lower().rstrip('/')}"
    if "://" not in text:
        # Shown only if it cannot be the key, passed in the wrong place.
        shown = repr(text) if len(text) <= 8 or "." in text or ":" in text else "given"
        raise ConfigurationError(
            f"unknown instance {shown}: known are {known}; for another give its https URL, such as "
            "https://rest.iad-01.braze.com"
        )
    _check_url(text, http_host)
    # A 403 is also blamed on a trailing slash.
    return text.rstrip("/")


def _check_url(text: str, http_host: str | None) -> None:
    try:
        parts = urlsplit(text)
        host, _ = parts.hostname, parts.port
        (host or "").encode("idna")
    except ValueError:
        raise ConfigurationError(
            "base_url is not a URL: its host or port cannot be read; give one such as "
            "https://rest.iad-01.braze.com"
        ) from None
    if not host or parts.scheme not in ("https", "http") or not text.isprintable() or " " in text:
        raise ConfigurationError(
            "base_url must be an https URL such as https://rest.iad-01.braze.com"
        )
    if parts.username is not None or parts.password is not None:
        raise ConfigurationError(
            "base_url must not carry a user name or password; leave out all up to the @"
        )
    if parts.query or parts.fragment or text.endswith(("?", "#")):
        raise ConfigurationError(
            "base_url must not carry a query or fragment; leave out ? or # and what follows"
        )
    if parts.scheme == "http" and not _is_loopback(host) and host != http_host:
        raise ConfigurationError(
            "base_url must be https: plain http would show the API key to the network (http is "
            "accepted for loopback addresses, and for the one host that allow_http_host or "
            "BRAZE_SENDS_ALLOW_HTTP_HOST names: an emulator, with a key that is made up)"
        )
    if parts.path.rstrip("/").endswith("/sends/id/create"):
        raise ConfigurationError(
            "base_url must end before the endpoint's path; leave out /sends/id/create"
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _checked_http_host(value: object) -> str:
    """The host to which the key may travel unencrypted, as ``urlsplit`` writes it."""
    name = value.lower() if isinstance(value, str) else ""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        if not re.fullmatch(r"[a-z0-9_][a-z0-9_.-]*", name):
            raise ConfigurationError(
                "allow_http_host (BRAZE_SENDS_ALLOW_HTTP_HOST) must be the bare name of one host, "
                "such as braze-emulator, without http:// and port"
            ) from None
    if f".{name.rstrip('.')}".endswith((".braze.com", ".braze.eu")):
        raise ConfigurationError(
            "allow_http_host (BRAZE_SENDS_ALLOW_HTTP_HOST) must not name a host of Braze: the API "
            "key would travel unencrypted. Use the https URL"
        )
    return name


def checked_wait(value: object) -> float | None:
    """``max_rate_limit_wait`` in seconds, 0 or more, or ``None`` for ever."""
    if value is None:
        return None
    seconds = checked_seconds("max_rate_limit_wait", value)
    if seconds < 0:
        raise ConfigurationError("max_rate_limit_wait must be 0 or more seconds, or None")
    return seconds


def checked_seconds(name: str, value: object) -> float:
    """``value`` as a finite number of seconds."""
    try:
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
    except OverflowError:  # an integer beyond every float
        pass
    raise ConfigurationError(f"{name} must be a finite number of seconds, not {value!r:.40}")


def checked_count(name: str, value: object) -> int:
    """``value`` as an integer of 0 or more."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ConfigurationError(f"{name} must be an integer of 0 or more, not {value!r}")
    return value
