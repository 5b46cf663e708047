"""What went wrong with Redis, and what to do about it: redis-py's errors in our words."""

from __future__ import annotations

import re
from collections.abc import Iterator

#: The documentation that names the commands and keys which a user needs.
_ACL = "docs/stores.md lists the commands and keys that the user needs"

# The first row that fits an error, or one that it came from, gives the words. Each error is matched
# as "Class: CODE text". Rows that tell more come first. ``{at}`` is the host and port, ``{why}``
# the error's own text.
_ROWS: tuple[tuple[str, str], ...] = (
    (
        r"^(Moved|Ask)Error|: MOVED \d",
        "the server is a node of a cluster: use redis+cluster:// in place of redis://",
    ),
    (
        r"Cluster mode is not enabled|cluster support disabled",
        "the server is no cluster: use redis:// in place of redis+cluster://",
    ),
    (
        r"NOPERM|NoPermission|can't run this command|can't access|no permissions",
        f"the user lacks a permission ({{why}}): {_ACL}",
    ),
    (
        r"without any password configured|no password is set",
        "the server asks for no password, but one was given: remove it from the URL",
    ),
    (
        r"WRONGPASS|invalid password|invalid username-password",
        "wrong user name or password: check both (in a URL, percent-encode special characters)",
    ),
    (
        r"NOAUTH|Authentication required|unauthenticated",
        "the server asks for a password: give one, as in redis://user:password@host:6379/0",
    ),
    (
        r"DENIED Redis is running in protected mode",
        "the server is in protected mode and lets in its own host alone: set a password there",
    ),
    (
        r"^gaierror",
        "cannot find the host of {at} (name not found): check the host name in the URL, and the "
        "DNS of this machine",
    ),
    (
        r"CERTIFICATE_VERIFY_FAILED|^SSLCertVerificationError",
        "the TLS certificate of {at} is not accepted ({certificate}): check the host name, or name "
        "the server's CA with ?ssl_ca_certs=/path/to/ca.pem",
    ),
    (
        r"^SSL\w*Error|\[SSL",
        "cannot speak TLS with {at}: check that this port expects TLS; if it does not, use "
        "redis:// in place of rediss://",
    ),
    (
        r"ReadOnlyError|READONLY",
        "the server is a read-only replica: name the primary in the URL, or use redis+sentinel://",
    ),
    (
        r"^OutOfMemoryError",
        "the server's memory is full: raise its maxmemory, or free some",
    ),
    (
        r"^BusyLoadingError",
        "the server is loading its data after a start: try again in a moment",
    ),
    (
        r"(?i)unknown command '?`?sentinel",
        "no sentinel answers at this port: check the hosts and ports in the URL (Sentinel's usual "
        "port is 26379), or use redis:// for one server",
    ),
    (
        r"^MasterNotFoundError: No master found for \S+ :",
        "cannot reach the sentinels, or none knows a running master of that name: check that the "
        "sentinels run, and the hosts, ports and service in the URL",
    ),
    (
        r"^MasterNotFoundError",
        "the sentinels know no running master of that name: check the service in the URL, or wait "
        "for the end of a failover",
    ),
    (
        r"^(ClusterDown|SlotNotCovered|MasterDown)Error|slots are not covered",
        "the cluster is not complete ({why}): wait for the end of a failover, or repair it",
    ),
    (
        r"TTL exhausted|^TryAgainError",
        "the cluster has been moving this workspace's slot for too long: try again when the slot "
        "has been moved",
    ),
    (
        r"max number of clients",
        "the server has too many clients: raise its maxclients, or close some connections",
    ),
    (
        r"^MaxConnectionsError|Too many connections|No connection available",
        "all connections of the client are in use: allow it more (max_connections)",
    ),
    (
        r"ConnectionRefusedError|Errno (111|61|10061)\b|Error (111|61|10061)\b",
        "cannot reach Redis at {at} (connection refused): check that the server runs, and the "
        "host and port in the URL",
    ),
    (
        r"^FileNotFoundError",
        "cannot reach Redis at {at} (no such file): check that the server runs, and the path in "
        "the URL",
    ),
    (
        r"^TimeoutError",
        "cannot reach Redis at {at} (no answer in time): check that the server runs, the host and "
        "port in the URL, the firewall, and that both sides speak TLS (rediss://) or neither does",
    ),
    (
        r"closed by server|^ConnectionResetError|^IncompleteReadError|^InvalidResponse|^BrokenPipe",
        "{at} closed the connection: check that it is a Redis server, and whether it expects TLS "
        "(rediss://)",
    ),
    (
        r"^(ConnectionError|OSError|PermissionError|RedisClusterException)",
        "cannot reach Redis at {at} ({why}): check that the server runs, and the URL",
    ),
)


def in_words(error: BaseException) -> str:
    """What an error of redis-py means, and what to do about it. It holds no password.

    Args:
        error: what was raised.
    """
    family = [(one, _text(one)) for one in _family(error)]
    whole = "\n".join(text for _, text in family)
    where = re.search(r"connecting to (\S+?)\.?(\s|$)", whole)
    certificate = re.search(r"verify failed: ([^(\n]+)", whole)
    for pattern, words in _ROWS:
        for one, text in family:
            if re.search(pattern, text):
                return words.format(
                    at=where[1] if where else "the server",
                    why=_why(one),
                    certificate=certificate[1].strip() if certificate else "it does not verify",
                )
    return _why(error)


def _family(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and those that it came from."""
    seen = set[int]()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _text(error: BaseException) -> str:
    code = getattr(error, "status_code", None)  # which newer redis-py takes out of the text
    return f"{type(error).__name__}: {f'{code} ' if code else ''}{error}"


def _why(error: BaseException) -> str:
    # A server may repeat the arguments of a command that it does not know: a password among them.
    text = str(error).partition(", with args")[0].rstrip(". ")
    return " ".join(text.split()) or type(error).__name__
