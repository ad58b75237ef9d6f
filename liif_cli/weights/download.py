"""One file over HTTP: mirrors in order, retries, resumption, and no byte used that was not verified.

What has come so far lies in one partial file, with a note beside it of where it came from. An interruption leaves both
and the next attempt goes on from there: the server is asked for the rest of the same version (`Range` and `If-Range`),
and whatever it answers, the whole is held against the expected size and checksum at the end. Nothing a server says is
ever used as a path. Proxies and certificates are taken from the environment, as `requests` does.
"""

from __future__ import annotations

import json
import re
import shutil
import ssl
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urljoin, urlsplit, urlunsplit

import requests
from urllib3.exceptions import HTTPError, NewConnectionError

from liif_cli import __version__
from liif_cli.errors import ModelError, OutputError
from liif_cli.files import cannot_write
from liif_cli.weights.cache import sha256_of

_CHUNK_BYTES = 1 << 16
_PROGRESS_BYTES = 1 << 20  # an attempt that brought as much was no failure: the line is bad, but it moves
_LARGEST_BYTES = 1 << 34  # of a file whose size nobody stated
_LONGEST_WAIT_S = 30.0
_TEMPORARY_STATUS = {408, 425, 429, 500, 502, 503, 504}
_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")
_TUNNEL = re.compile(r"Tunnel connection failed: (\d+)")
_MARKUP = re.compile(rb"(?:\xef\xbb\xbf)?\s*<[!?A-Za-z]")
_WEB_PAGE = "answers with a web page, not the file (a page to confirm, to sign in or about an error)"


@dataclass(frozen=True)
class Wanted:
    """A file to download, and what is known of it beforehand."""

    urls: tuple[str, ...]  # tried in this order
    sha256: str | None = None
    bytes: int | None = None


@dataclass(frozen=True)
class Patience:
    """How long to wait, and how often to try each mirror."""

    connect_s: float = 10.0
    read_s: float = 30.0  # without a single byte
    attempts: int = 4  # in a row that bring next to nothing
    backoff_s: float = 1.0  # before the second attempt; doubled before each further one


class Watcher(Protocol):
    """Who is told what happens meanwhile."""

    def note(self, text: str) -> None:
        """Take one line worth telling."""

    def progress(self, done_bytes: int, total_bytes: int | None) -> None:
        """Take how far a download has come."""


class _TemporaryError(Exception):
    """Worth another attempt at the same address."""

    def __init__(self, reason: str, wait_s: float = 0.0) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


class _MirrorError(Exception):
    """This address will not do."""


class _OtherFileError(_MirrorError):
    """This address has a file, but not the one that is wanted."""


class MismatchError(ModelError):
    """No address had the file, and at least one had another in its place."""


def download(wanted: Wanted, partial: Path, watcher: Watcher, patience: Patience | None = None) -> str:
    """Bring a file to `partial`, verified as far as it is known; returns the address it came from.

    Raises ModelError with the reason of every address when none has it, MismatchError if what is recorded of the file
    may be at fault, OutputError when the disk does not take it.
    The caller holds the lock of `partial`.
    """
    patience = patience or Patience()
    reasons, kind = [], ModelError
    with _Session() as session:
        session.headers.update({"User-Agent": f"liif/{__version__}", "Accept-Encoding": "identity"})
        for url in wanted.urls:
            try:
                _from_mirror(session, url, wanted, partial, watcher, patience)
            except _MirrorError as error:
                reasons.append(f"{urlsplit(url).hostname}: {error}")
                kind = MismatchError if isinstance(error, _OtherFileError) else kind
                if url != wanted.urls[-1]:
                    watcher.note(f"{reasons[-1]}; trying the next mirror")
            else:
                return url
    raise kind("; ".join(reasons))


def forget(partial: Path) -> None:
    """Remove a partial file and the note about it."""
    partial.unlink(missing_ok=True)
    _note_path(partial).unlink(missing_ok=True)


def without_password(url: str) -> str:
    """An address as it may be written down."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


class _Session(requests.Session):
    def get_redirect_target(self, resp: Any) -> Any:
        target = super().get_redirect_target(resp)
        if target and _is_https(resp.url) and not _is_https(urljoin(resp.url, target)):
            raise _MirrorError("redirects to an address that is not https")
        return target


def _is_https(url: str) -> bool:
    return urlsplit(url).scheme == "https"


def _from_mirror(
    session: requests.Session, url: str, wanted: Wanted, partial: Path, watcher: Watcher, patience: Patience
) -> None:
    failures, farthest = 0, 0
    while True:
        offset = _resumable_bytes(url, wanted, partial)
        farthest = max(farthest, offset)
        try:
            if offset == 0 or offset != wanted.bytes:
                _transfer(session, url, wanted, partial, offset, watcher, patience)
            _verify(partial, wanted, resumed=offset > 0)
        except _TemporaryError as error:
            # What was here before, and was thrown away, is no progress.
            reached = partial.stat().st_size if partial.exists() else 0
            failures = 1 if reached - farthest >= _PROGRESS_BYTES else failures + 1
            farthest = max(farthest, reached)
            if failures >= patience.attempts:
                raise _MirrorError(str(error)) from None
            watcher.note(f"{urlsplit(url).hostname}: {error}; trying again")
            time.sleep(max(error.wait_s, patience.backoff_s * 2 ** (failures - 1)))
        else:
            return


def _verify(partial: Path, wanted: Wanted, *, resumed: bool) -> None:
    if wanted.sha256 is None or sha256_of(partial) == wanted.sha256:
        return
    forget(partial)
    if resumed:
        # Pieces of different files may have met; the whole in one go tells.
        raise _TemporaryError("the pieces do not make the expected file")
    raise _OtherFileError("its file is not the expected one: the checksum differs")


def _transfer(
    session: requests.Session,
    url: str,
    wanted: Wanted,
    partial: Path,
    offset: int,
    watcher: Watcher,
    patience: Patience,
) -> None:
    """One request, its body appended to the partial file, or in its place when the server begins anew."""
    headers = {}
    if offset:
        headers["Range"] = f"bytes={offset}-"
        note = _read_note(partial)
        if note.get("url") == without_password(url) and note.get("validator"):
            headers["If-Range"] = note["validator"]
    timeout = (patience.connect_s, patience.read_s)
    try:
        with session.get(url, headers=headers, stream=True, timeout=timeout) as response:
            # All of it came before, and what was to be done with it did not.
            if response.status_code == 416 and response.headers.get("Content-Range") == f"bytes */{offset}":
                return
            offset, total = _check_answer(response, wanted, partial, offset)
            _write_body(response, url, wanted, partial, offset, total, watcher)
    # Some of urllib3's come through as they are: of the names of machines that cannot be.
    except (requests.RequestException, HTTPError) as error:
        raise _explained(error) from None
    except ValueError as error:  # of addresses and numbers that are none
        raise _MirrorError(f"answers what cannot be understood ({str(error)[:100]})") from None
    except OSError as error:
        if "certificate" not in str(error).lower():
            raise
        raise _MirrorError(f"{error}; REQUESTS_CA_BUNDLE and the like name it") from None


def _check_answer(response: requests.Response, wanted: Wanted, partial: Path, offset: int) -> tuple[int, int | None]:
    """Where in the file the body begins, and the size of the whole if the server states it."""
    status, headers = response.status_code, response.headers
    if status in _TEMPORARY_STATUS:
        wait = headers.get("Retry-After", "")
        raise _TemporaryError(_status(response), min(float(wait), _LONGEST_WAIT_S) if wait.isdecimal() else 0.0)
    if status == 416:
        forget(partial)
        raise _TemporaryError("has no more of this file than is here already")
    if status not in (200, 206):
        raise _MirrorError(_status(response))
    if headers.get("Content-Type", "").partition(";")[0].strip().lower() in ("text/html", "application/xhtml+xml"):
        raise _MirrorError(_WEB_PAGE)
    if headers.get("Content-Encoding", "identity") != "identity":
        raise _MirrorError("sends the file in a compressed form that was not asked for")
    length = headers.get("Content-Length", "")
    total = int(length) if length.isdecimal() else None
    if status == 206:
        match = _CONTENT_RANGE.fullmatch(headers.get("Content-Range", ""))
        if match is None or int(match[1]) != offset:
            forget(partial)
            raise _TemporaryError("sends another part of the file than was asked for")
        before, now = str(_read_note(partial).get("validator") or ""), _validator(response)
        same_kind = bool(before and now) and now.startswith('"') == before.startswith('"')
        if wanted.sha256 is None and same_kind and now != before:
            forget(partial)  # a cache on the way may not know If-Range, and nothing else would tell
            raise _TemporaryError("has another version of the file now")
        total = int(match[2]) if match[2] != "*" else None
    else:
        offset = 0
    if wanted.bytes is not None and total is not None and total != wanted.bytes:
        raise _OtherFileError(f"its file is not the expected one: {total:,} bytes, not {wanted.bytes:,}")
    return offset, total


def _write_body(
    response: requests.Response,
    url: str,
    wanted: Wanted,
    partial: Path,
    offset: int,
    total: int | None,
    watcher: Watcher,
) -> None:
    total = total if total is not None else wanted.bytes
    _check_space(partial, (total or 0) - offset)
    done = offset
    try:
        # Opened only once there is a body to write: an answer without one must not cost what is here already.
        with partial.open("ab" if offset else "wb") as file:
            if not offset:
                _write_note(partial, url, wanted, response)
            for chunk in _sound_chunks(response, offset, total if total is not None else _LARGEST_BYTES):
                file.write(chunk)
                done += len(chunk)
                watcher.progress(done, total)
    except _MirrorError:
        forget(partial)
        raise
    except (requests.RequestException, HTTPError):
        raise
    except OSError as error:
        raise cannot_write(partial, error) from error
    if total is not None and done < total:
        raise _TemporaryError(f"the connection ended after {done:,} of {total:,} bytes")


def _sound_chunks(response: requests.Response, offset: int, largest: int) -> Iterator[bytes]:
    """The body, as long as it is no web page and no larger than it may be."""
    done = offset
    for chunk in response.iter_content(_CHUNK_BYTES):
        if done == 0 and _MARKUP.match(chunk):
            raise _MirrorError(_WEB_PAGE)
        done += len(chunk)
        if done > largest:
            raise _OtherFileError(f"its file is not the expected one: more than {largest:,} bytes")
        yield chunk


def _check_space(partial: Path, needed: int) -> None:
    free = shutil.disk_usage(partial.parent).free
    if needed > free:
        raise OutputError(
            f"{partial.parent}: {needed:,} bytes needed, {free:,} free; free some space or name another folder"
        )


def _resumable_bytes(url: str, wanted: Wanted, partial: Path) -> int:
    """How much of the partial file can be kept; what cannot is removed."""
    size = partial.stat().st_size if partial.exists() else 0
    note = _read_note(partial)
    same_file = note.get("sha256") == wanted.sha256 and (wanted.bytes is None or size <= wanted.bytes)
    # Without a checksum only the server can tell that the rest belongs to what is here.
    verifiable = wanted.sha256 is not None or (note.get("url") == without_password(url) and bool(note.get("validator")))
    if size and same_file and verifiable:
        return size
    forget(partial)
    return 0


def _note_path(partial: Path) -> Path:
    return partial.with_name(f"{partial.name}.json")


def _read_note(partial: Path) -> dict[str, Any]:
    try:
        note = json.loads(_note_path(partial).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return note if isinstance(note, dict) else {}


def _write_note(partial: Path, url: str, wanted: Wanted, response: requests.Response) -> None:
    note = {"url": without_password(url), "sha256": wanted.sha256, "validator": _validator(response)}
    _note_path(partial).write_text(json.dumps(note), encoding="utf-8")


def _validator(response: requests.Response) -> str:
    """What tells a version of a file: If-Range takes no weak one (RFC 9110, section 13.1.5)."""
    etag = str(response.headers.get("ETag", ""))
    return etag if etag.startswith('"') else str(response.headers.get("Last-Modified", ""))


def _status(response: requests.Response) -> str:
    return f"answers {response.status_code} {response.reason or ''}".rstrip()


def _explained(error: requests.RequestException | HTTPError) -> Exception:
    """What went wrong on the way, in a user's words, and whether another attempt may help."""
    causes = _causes(error)
    if any(isinstance(cause, ssl.SSLCertVerificationError) for cause in causes):
        return _MirrorError("its certificate is not trusted; set REQUESTS_CA_BUNDLE where a proxy has its own")
    if any(isinstance(cause, ssl.SSLError) for cause in causes) or isinstance(error, requests.exceptions.SSLError):
        return _TemporaryError("the secure connection broke")
    if refused := next(filter(None, (_TUNNEL.search(str(cause)) for cause in causes)), None):
        return _of_proxy(int(refused[1]))
    if isinstance(error, requests.exceptions.ProxyError):
        return _MirrorError("the proxy of HTTPS_PROXY or HTTP_PROXY cannot be reached")
    if isinstance(error, requests.exceptions.ConnectTimeout):
        return _TemporaryError("no connection in time")
    if any(isinstance(cause, NewConnectionError) for cause in causes):
        return _MirrorError("cannot be reached (is there a connection?)")
    if isinstance(error, requests.exceptions.Timeout) or any(isinstance(cause, TimeoutError) for cause in causes):
        return _TemporaryError("stopped sending")
    if isinstance(error, (requests.exceptions.ConnectionError, requests.exceptions.ChunkedEncodingError)):
        return _TemporaryError("the connection broke")
    if isinstance(error, requests.exceptions.TooManyRedirects):
        return _MirrorError("redirects in circles")
    return _MirrorError(str(error).partition("\n")[0][:200] or type(error).__name__)


def _of_proxy(status: int) -> Exception:
    if status == 407:
        return _MirrorError("the proxy wants a name and a password: HTTPS_PROXY=http://NAME:PASSWORD@...")
    text = f"the proxy answers {status}"
    return _TemporaryError(text) if status in _TEMPORARY_STATUS else _MirrorError(text)


def _causes(error: BaseException) -> list[BaseException]:
    """An error and all it was made from; requests keeps them in `args`, urllib3 in `reason`."""
    found: list[BaseException] = []
    waiting: list[Any] = [error]
    while waiting:
        each = waiting.pop()
        if isinstance(each, BaseException) and each not in found:
            found.append(each)
            waiting += [each.__cause__, each.__context__, getattr(each, "reason", None), *each.args]
    return found
