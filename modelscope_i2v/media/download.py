"""Downloads within bounds: so many bytes, so much time, and where asked for from public addresses alone."""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import socket
import tempfile
import threading
import urllib.error
import urllib.parse
import urllib.request
from typing import Any, BinaryIO

from ..errors import InputError

_TIMEOUT = 30.0
"""Seconds without an answer after which a download is given up."""

_DEADLINE = 300.0
"""Seconds that a download may take in all, redirects and pauses included."""

_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_TUNNELS = [ipaddress.ip_network(net) for net in ("2002::/16", "2001::/32", "64:ff9b:1::/48")]


def download(url: str, what: str, max_bytes: int, *, public_only: bool = False) -> BinaryIO:
    """Fetch an ``http(s)://`` URL into a temporary file, which has no name and ends when it is closed.

    Args:
        what: ``picture`` or ``video``, for messages.
        max_bytes: the most that is fetched.
        public_only: for a server whose visitors name URLs: addresses that are private, loopback, link-local
            or otherwise not of the public internet are refused. The address that a name resolved to is
            the one that is connected to, for each redirect anew, and no proxy is asked.

    Raises:
        InputError: for whatever goes wrong, or takes longer than five minutes.
    """
    file = tempfile.TemporaryFile()  # noqa: SIM115 - whoever calls closes it
    session = _Session(public_only)
    try:
        with session:
            _fetch(session, url, file, max_bytes)
    except InputError:
        file.close()
        raise
    except (OSError, ValueError, http.client.HTTPException) as error:
        file.close()
        raise InputError(
            f"The {what} could not be downloaded from {url!r}: {session.reason(error)}."
        ) from error
    except BaseException:
        file.close()
        raise
    file.seek(0)
    return file


def _fetch(session: _Session, url: str, file: BinaryIO, max_bytes: int) -> None:
    # A URL copied from a browser may hold spaces or other letters that a request line cannot.
    quoted = urllib.parse.quote(url, safe="%/:=&?~#+!$,;'@()*[]")
    request = urllib.request.Request(quoted, headers={"User-Agent": "modelscope-i2v"})
    with session.opener().open(request, timeout=_TIMEOUT) as answer:
        stated = answer.headers.get("Content-Length")
        length = int(stated) if stated and not answer.headers.get("Transfer-Encoding") else None
        check_size(length or 0, max_bytes, repr(url))
        while chunk := answer.read(1 << 16):
            file.write(chunk)
            check_size(file.tell(), max_bytes, repr(url))
    if session.expired:  # a connection that was cut may look like one that ended
        raise TimeoutError
    if length is not None and file.tell() < length:
        raise http.client.IncompleteRead(b"")


def check_size(size: int, max_bytes: int, name: str) -> None:
    """Refuse more bytes than ``max_bytes``."""
    if size > max_bytes:
        raise InputError(
            f"{name} is larger than {max_bytes / 1e6:.0f} MB, the most that is fetched; "
            "save it as a file and give its path instead."
        )


class _Session:
    """The connections of one download, which are cut when its time is up, wherever it waits."""

    def __init__(self, public_only: bool):
        self.public_only, self.expired = public_only, False
        self.sockets: list[socket.socket] = []
        self.timer = threading.Timer(_DEADLINE, self._expire)
        self.timer.daemon = True

    def __enter__(self) -> None:
        self.timer.start()

    def __exit__(self, *error: object) -> None:
        self.timer.cancel()

    def _expire(self) -> None:
        self.expired = True
        for each in self.sockets:
            with contextlib.suppress(OSError, ValueError):
                each.shutdown(socket.SHUT_RDWR)

    def opener(self) -> urllib.request.OpenerDirector:
        """An opener for http and https alone: a redirect to ftp or a file finds nobody who follows it."""
        opener = urllib.request.OpenerDirector()
        handlers = [
            _Http(self),
            _Https(self),
            urllib.request.HTTPErrorProcessor(),
            urllib.request.HTTPDefaultErrorHandler(),
            urllib.request.HTTPRedirectHandler(),
            urllib.request.UnknownHandler(),
        ]
        if not self.public_only:
            handlers.append(urllib.request.ProxyHandler())
        for handler in handlers:
            opener.add_handler(handler)
        return opener

    def watched(self, connection: Any) -> Any:
        """The same http.client connection, opened by :meth:`_connect` and cut in time."""
        connection._create_connection = self._connect
        plain_connect = connection.connect

        def connect() -> None:
            plain_connect()
            self._watch(connection.sock)  # TLS has put a socket of its own in the place of the first

        connection.connect = connect
        return connection

    def _watch(self, opened: socket.socket) -> None:
        self.sockets.append(opened)
        if self.expired:  # in between
            raise TimeoutError

    def _connect(self, address: tuple[str, int], timeout: float, source: Any = None) -> socket.socket:
        host, port = address
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        addresses = list(dict.fromkeys(str(each[4][0]) for each in found))
        if self.public_only:
            addresses = [each for each in addresses if _is_public(each)]
            if not addresses:
                raise PermissionError(0, f"{host!r} is not an address of the public internet")
        for number, each in enumerate(addresses, start=1):
            try:
                opened = socket.create_connection((each, port), timeout, source)
            except OSError:
                if number == len(addresses) or self.expired:
                    raise
            else:
                self._watch(opened)
                return opened
        raise OSError("the name has no address")

    def reason(self, error: Exception) -> str:
        """An error in words that are not Python's."""
        if self.expired:
            return f"it takes longer than {_DEADLINE:.0f} seconds"
        if isinstance(error, urllib.error.HTTPError):
            return str(error)
        if isinstance(error, urllib.error.URLError) and isinstance(error.reason, Exception):
            error = error.reason
        if isinstance(error, http.client.IncompleteRead):
            return "it is cut short"
        if isinstance(error, http.client.InvalidURL):
            return str(error)
        if isinstance(error, http.client.HTTPException) and not isinstance(error, OSError):
            return "the answer is not valid HTTP"
        if isinstance(error, UnicodeError):
            return "it is no valid address"
        return str(getattr(error, "strerror", None) or error)


class _Http(urllib.request.HTTPHandler):
    def __init__(self, session: _Session):
        super().__init__()
        self.session = session

    def http_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(self._connection, request)  # type: ignore[arg-type]

    def _connection(self, host: str, **options: Any) -> http.client.HTTPConnection:
        return self.session.watched(http.client.HTTPConnection(host, **options))


class _Https(urllib.request.HTTPSHandler):
    def __init__(self, session: _Session):
        super().__init__()
        self.session = session

    def https_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(self._connection, request)  # type: ignore[arg-type]

    def _connection(self, host: str, **options: Any) -> http.client.HTTPSConnection:
        return self.session.watched(http.client.HTTPSConnection(host, **options))


def _is_public(text: str) -> bool:
    address: Any = ipaddress.ip_address(text.split("%")[0])
    if address.version == 6:
        if any(address in net for net in _TUNNELS):  # these lead to an IPv4 address of anybody's choice
            return False
        if address.ipv4_mapped or address in _NAT64:
            address = address.ipv4_mapped or ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.is_global and not address.is_multicast
