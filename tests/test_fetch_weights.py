"""Models come whole and verified or not at all, from a server that does everything servers do."""

import functools
import hashlib
import http.server
import json
import pickle
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import requests
import torch
from PIL import Image
from typer.main import get_command
from typer.testing import CliRunner

from liif_cli import checkpoint, weights
from liif_cli.cli import app
from liif_cli.errors import ModelError, OutputError, UsageError
from liif_cli.weights import download, fetch, listing
from liif_cli.weights.cache import Place, read_record
from liif_cli.weights.download import MismatchError, Patience, Wanted
from liif_cli.weights.registry import Entry, Registry, RemoteFile

TINY = Path(__file__).parent / "data" / "official_tiny.pth"
TINY_BYTES = TINY.read_bytes()
TINY_SHA256 = hashlib.sha256(TINY_BYTES).hexdigest()

# Larger than what is written at once, so that a part of it can have come: of 200,000 bytes three blocks of 65,536.
CONTENT = bytes(range(1, 251)) * 1200
SHA256 = hashlib.sha256(CONTENT).hexdigest()
QUICK = Patience(connect_s=2, read_s=1, attempts=3, backoff_s=0.01)

Answer = Callable[["Handler"], None]


class Handler(http.server.BaseHTTPRequestHandler):
    server: "Server"

    def do_GET(self) -> None:
        with self.server.guard:
            self.server.asked.append((self.path, dict(self.headers)))
            answers = self.server.answers[self.path]
            answer = answers.pop(0) if len(answers) > 1 else answers[0]
        answer(self)

    def log_message(self, *_: Any) -> None:
        pass

    def head(self, status: int, length: int, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(length))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()


class Server(http.server.ThreadingHTTPServer):
    """Answers each path with its list of answers in turn, the last one for ever, and remembers what it was asked."""

    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.guard = threading.Lock()
        self.closing = threading.Event()
        self.answers: dict[str, list[Answer]] = {}
        self.asked: list[tuple[str, dict[str, str]]] = []

    def url(self, path: str, *answers: Answer) -> str:
        self.answers[path] = list(answers)
        return f"http://127.0.0.1:{self.server_port}{path}"

    def ranges(self) -> list[str | None]:
        return [headers.get("Range") for _, headers in self.asked]

    def handle_error(self, *_: Any) -> None:
        pass  # a client that hangs up is what some tests are about


def whole(content: bytes, *, etag: str = '"one"', ranges: bool = True, **headers: str) -> Answer:
    """Serve as a server should: the rest of the same version to who asks for it."""

    def answer(to: Handler) -> None:
        asked = to.headers.get("Range")
        same = to.headers.get("If-Range", etag) == etag
        if asked and ranges and same:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            if start >= len(content):
                to.head(416, 0, Content_Range=f"bytes */{len(content)}")
                return
            stated = f"bytes {start}-{len(content) - 1}/{len(content)}"
            to.head(206, len(content) - start, ETag=etag, Content_Range=stated, **headers)
            to.wfile.write(content[start:])
        else:
            to.head(200, len(content), ETag=etag, **headers)
            to.wfile.write(content)

    return answer


def broken_off(content: bytes, after: int, *, etag: str = '"one"') -> Answer:
    """Promise all, send a part, hang up."""

    def answer(to: Handler) -> None:
        to.head(200, len(content), ETag=etag)
        to.wfile.write(content[:after])

    return answer


def stalled(content: bytes, after: int) -> Answer:
    """Promise all, send a part, and nothing more."""

    def answer(to: Handler) -> None:
        to.head(200, len(content), ETag='"one"')
        to.wfile.write(content[:after])
        to.wfile.flush()
        to.server.closing.wait(20)

    return answer


def status(code: int, **headers: str) -> Answer:
    return lambda to: to.head(code, 0, **headers)


def page(
    text: str = "<!DOCTYPE html><title>Virus scan warning</title>", kind: str = "text/html; charset=utf-8"
) -> Answer:
    def answer(to: Handler) -> None:
        to.head(200, len(text), Content_Type=kind)
        to.wfile.write(text.encode())

    return answer


class Told:
    """What a fetch says meanwhile."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.done: list[int] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def progress(self, done_bytes: int, total_bytes: int | None) -> None:
        self.done.append(done_bytes)


class Interrupting(Told):
    def progress(self, done_bytes: int, total_bytes: int | None) -> None:
        raise KeyboardInterrupt


@pytest.fixture(scope="module")
def one_server() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.closing.set()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def server(one_server: Server) -> Server:
    one_server.answers.clear()
    one_server.asked.clear()
    return one_server


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def partial(tmp_path: Path) -> Path:
    return tmp_path / "a.part"


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setattr(download, "Patience", lambda: QUICK)
    monkeypatch.setenv("LIIF_CACHE", str(cache))


def wanted(*urls: str, content: bytes = CONTENT) -> Wanted:
    return Wanted(urls, hashlib.sha256(content).hexdigest(), len(content))


def entry(*mirrors: str, confirmed: bool = True, content: bytes = TINY_BYTES) -> Entry:
    file = RemoteFile("tiny.pth", len(content), hashlib.sha256(content).hexdigest(), confirmed, mirrors)
    scores = {"Set5": {"x2": 30.0}}
    return Entry("tiny", "small", "LIIF", 4723, "MIT", "", "here", "none", "measured", scores, file)


def names(folder: Path) -> list[str]:
    """Every file of a cache but the locks."""
    return sorted(path.name for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")


# --- one file over HTTP


def test_a_file_arrives_and_is_verified(server: Server, partial: Path, told: Told) -> None:
    url = server.url("/a", whole(CONTENT))
    assert download.download(wanted(url), partial, told) == url
    assert partial.read_bytes() == CONTENT
    assert told.notes == []
    assert told.done[-1] == len(CONTENT)
    assert server.asked[0][1]["User-Agent"].startswith("liif/")


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_redirects_are_followed(server: Server, partial: Path, told: Told, code: int) -> None:
    server.url("/a", whole(CONTENT))
    download.download(wanted(server.url("/b", status(code, Location="/a"))), partial, told)
    assert partial.read_bytes() == CONTENT


def test_redirects_in_circles_are_one_line(server: Server, partial: Path, told: Told) -> None:
    with pytest.raises(ModelError, match=r"^127\.0\.0\.1: redirects in circles$"):
        download.download(wanted(server.url("/a", status(302, Location="/a"))), partial, told)


def test_a_redirect_away_from_https_is_not_followed() -> None:
    response = requests.Response()
    response.status_code, response.url = 302, "https://example.org/a"
    for location, allowed in (("http://example.org/b", False), ("https://example.net/b", True), ("/b", True)):
        response.headers["Location"] = location
        with download._Session() as session:
            if allowed:
                assert session.get_redirect_target(response) == location
            else:
                with pytest.raises(download._MirrorError, match="not https"):
                    session.get_redirect_target(response)


def test_a_dropped_connection_is_resumed_where_it_broke(server: Server, partial: Path, told: Told) -> None:
    url = server.url("/a", broken_off(CONTENT, 200_000), whole(CONTENT))
    download.download(wanted(url), partial, told)
    assert partial.read_bytes() == CONTENT
    assert server.ranges() == [None, "bytes=196608-"]
    assert server.asked[1][1]["If-Range"] == '"one"'
    assert "trying again" in told.notes[0]


def test_what_came_whole_before_is_not_fetched_again(server: Server, partial: Path, told: Told) -> None:
    """The process ended between the download and what it was for."""
    url = server.url("/a", whole(CONTENT))
    download.download(Wanted((url,)), partial, told)
    download.download(Wanted((url,)), partial, told)
    assert server.ranges() == [None, f"bytes={len(CONTENT)}-"]
    assert partial.read_bytes() == CONTENT


def test_a_stalled_connection_is_given_up_and_resumed(server: Server, partial: Path, told: Told) -> None:
    url = server.url("/a", stalled(CONTENT, 200_000), whole(CONTENT))
    download.download(wanted(url), partial, told)
    assert partial.read_bytes() == CONTENT
    start = int(str(server.ranges()[1]).removeprefix("bytes=").removesuffix("-"))
    assert 0 < start <= 200_000
    assert "stopped sending" in told.notes[0]


def test_a_file_that_changed_meanwhile_is_fetched_anew(server: Server, partial: Path, told: Told) -> None:
    url = server.url("/a", broken_off(b"\1" * len(CONTENT), 200_000, etag='"old"'), whole(CONTENT))
    download.download(wanted(url), partial, told)
    assert partial.read_bytes() == CONTENT
    assert server.asked[1][1]["If-Range"] == '"old"'


def test_a_server_without_ranges_sends_all_again(server: Server, partial: Path, told: Told) -> None:
    url = server.url("/a", broken_off(CONTENT, 200_000), whole(CONTENT, ranges=False))
    download.download(wanted(url), partial, told)
    assert partial.read_bytes() == CONTENT


def test_pieces_that_do_not_fit_are_dropped_and_the_whole_is_fetched(server: Server, partial: Path, told: Told) -> None:
    url = server.url("/a", broken_off(b"\1" * len(CONTENT), 200_000), whole(CONTENT))  # under the same ETag
    download.download(wanted(url), partial, told)
    assert partial.read_bytes() == CONTENT
    assert server.ranges() == [None, "bytes=196608-", None]


@pytest.mark.parametrize("known", [True, False])
def test_pieces_of_two_versions_do_not_meet_where_if_range_is_not_known(
    server: Server, partial: Path, told: Told, known: bool
) -> None:
    def rest_of_another(to: Handler) -> None:
        start = int(str(to.headers["Range"]).removeprefix("bytes=").removesuffix("-"))
        to.head(
            206, len(CONTENT) - start, ETag='"two"', Content_Range=f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}"
        )
        to.wfile.write(CONTENT[start:])

    url = server.url("/a", broken_off(b"\1" * len(CONTENT), 200_000), rest_of_another, whole(CONTENT, etag='"two"'))
    download.download(wanted(url) if known else Wanted((url,)), partial, told)
    assert partial.read_bytes() == CONTENT


def test_a_file_that_begins_with_a_space_and_a_bracket_is_no_web_page(
    server: Server, partial: Path, told: Told
) -> None:
    """As safetensors do with a header of 15,392 bytes."""
    content = struct.pack("<Q", 0x3C20) + b"{}" + bytes(100)
    download.download(Wanted((server.url("/a", whole(content)),)), partial, told)
    assert partial.read_bytes() == content


@pytest.mark.parametrize("url", ["https://a..b/x.pth", f"https://{'a' * 64}.org/x.pth"])
def test_names_that_no_machine_has_are_an_error_in_a_line(partial: Path, told: Told, url: str) -> None:
    with pytest.raises(ModelError, match="label"):
        download.download(Wanted((url,)), partial, told)


def test_a_secure_connection_that_breaks_is_tried_again_and_no_matter_of_trust(partial: Path, told: Told) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def hang_up() -> None:
            for _ in range(2):
                listening.accept()[0].close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        url, patience = f"https://127.0.0.1:{listening.getsockname()[1]}/a", Patience(attempts=2, backoff_s=0)
        with pytest.raises(ModelError) as error:
            download.download(Wanted((url,)), partial, told, patience)
        thread.join()
    assert "certificate" not in str(error.value)
    assert "trying again" in told.notes[0]


@pytest.mark.parametrize(
    ("status", "words", "temporary"),
    [(407, "wants a name and a password", False), (503, "answers 503", True), (403, "answers 403", False)],
)
def test_what_a_proxy_answers_is_said(status: int, words: str, temporary: bool) -> None:
    cause = OSError(f"Tunnel connection failed: {status} Whatever")
    said = download._explained(requests.exceptions.ProxyError(cause))
    assert words in str(said)
    assert isinstance(said, download._TemporaryError) == temporary


@pytest.mark.parametrize("stated", ["bytes 7-9/10", "nonsense", f"bytes 0-1/{len(CONTENT)}"])
def test_an_answer_with_another_part_is_not_appended(server: Server, partial: Path, told: Told, stated: str) -> None:
    def other_part(to: Handler) -> None:
        to.head(206, 3, Content_Range=stated)
        to.wfile.write(b"abc")

    url = server.url("/a", broken_off(CONTENT, 200_000), other_part, whole(CONTENT))
    download.download(wanted(url), partial, told)
    assert partial.read_bytes() == CONTENT


def test_the_next_mirror_goes_on_where_the_first_broke_off(server: Server, partial: Path, told: Told) -> None:
    bad = server.url("/bad", broken_off(CONTENT, 200_000), status(404))
    good = server.url("/good", whole(CONTENT, etag='"other"'))
    assert download.download(wanted(bad, good), partial, told) == good
    assert partial.read_bytes() == CONTENT
    assert server.ranges() == [None, "bytes=196608-", "bytes=196608-"]
    assert "If-Range" not in server.asked[2][1]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (status(404), "answers 404 Not Found"),
        (status(403), "answers 403 Forbidden"),
        (status(503), "answers 503 Service Unavailable"),
        (page(), "a web page, not the file"),
        (page(" \n<html>".ljust(len(CONTENT)), "application/octet-stream"), "a web page, not the file"),
        (whole(CONTENT[:-1]), "299,999 bytes, not 300,000"),
        (whole(CONTENT[:-1] + b"x"), "the checksum differs"),
        (broken_off(CONTENT, 0), "the connection (broke|ended)"),
        (stalled(CONTENT, 0), "stopped sending"),
        (whole(CONTENT, Content_Encoding="gzip"), "compressed"),
    ],
)
def test_a_bad_mirror_is_named_and_the_next_one_serves(
    server: Server, partial: Path, told: Told, answer: Answer, reason: str
) -> None:
    bad, good = server.url("/bad", answer), server.url("/good", whole(CONTENT))
    with pytest.raises(ModelError, match=reason) as caught:
        download.download(wanted(bad), partial, told)
    assert "\n" not in str(caught.value)
    assert not partial.exists() or CONTENT.startswith(partial.read_bytes())
    assert download.download(wanted(bad, good), partial, told) == good
    assert partial.read_bytes() == CONTENT


def test_a_mismatch_is_told_from_a_server_that_is_away(server: Server, partial: Path, told: Told) -> None:
    other, gone = server.url("/other", whole(CONTENT[::-1])), server.url("/gone", status(404))
    with pytest.raises(MismatchError):
        download.download(wanted(other, gone), partial, told)
    with pytest.raises(ModelError) as caught:
        download.download(wanted(gone), partial, told)
    assert not isinstance(caught.value, MismatchError)


def test_a_server_that_is_not_there_is_one_line(partial: Path, told: Told) -> None:
    with pytest.raises(ModelError, match=r"^127\.0\.0\.1: cannot be reached \(is there a connection\?\)$"):
        download.download(wanted("http://127.0.0.1:9/a"), partial, told)


def test_a_busy_server_is_asked_again(server: Server, partial: Path, told: Told) -> None:
    url = server.url("/a", status(429, Retry_After="0"), status(503), whole(CONTENT))
    download.download(wanted(url), partial, told)
    assert len(server.asked) == 3


def test_more_than_was_promised_is_refused(server: Server, partial: Path, told: Told) -> None:
    def endless(to: Handler) -> None:
        to.send_response(200)
        to.end_headers()
        to.wfile.write(CONTENT * 2)

    with pytest.raises(MismatchError, match="more than 300,000 bytes"):
        download.download(wanted(server.url("/a", endless)), partial, told)
    assert not partial.exists()


def test_an_interruption_leaves_the_part_and_the_next_run_goes_on(server: Server, partial: Path, told: Told) -> None:
    url = server.url("/a", whole(CONTENT))
    with pytest.raises(KeyboardInterrupt):
        download.download(wanted(url), partial, Interrupting())
    kept = partial.stat().st_size
    assert 0 < kept < len(CONTENT)
    download.download(wanted(url), partial, told)
    assert partial.read_bytes() == CONTENT
    assert server.ranges() == [None, f"bytes={kept}-"]


def test_without_a_checksum_only_the_same_version_is_resumed(server: Server, partial: Path, told: Told) -> None:
    first, second = server.url("/a", broken_off(CONTENT, 200_000), status(404)), server.url("/b", whole(CONTENT))
    with pytest.raises(ModelError):
        download.download(Wanted((first,)), partial, told)
    assert server.ranges() == [None, "bytes=196608-"]
    download.download(Wanted((second,)), partial, told)
    assert server.ranges()[2] is None
    assert partial.read_bytes() == CONTENT


def test_a_full_disk_is_an_output_error(
    server: Server, partial: Path, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=7))
    with pytest.raises(OutputError, match="300,000 bytes needed, 7 free"):
        download.download(wanted(server.url("/a", whole(CONTENT))), partial, told)


def test_the_proxy_of_the_environment_is_used(
    server: Server, partial: Path, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.answers["http://models.invalid/a"] = [whole(CONTENT)]
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{server.server_port}")
    download.download(wanted("http://models.invalid/a"), partial, told)
    assert partial.read_bytes() == CONTENT


# --- a model into the cache


def test_a_model_is_downloaded_converted_and_found(server: Server, cache: Path, told: Told) -> None:
    known = entry(server.url("/tiny.pth", whole(TINY_BYTES)))
    fetched = fetch.fetch(known, cache, told)
    assert fetched.status == "downloaded"
    assert names(cache) == ["tiny.json", "tiny.safetensors"]
    new, old = checkpoint.read(fetched.path), checkpoint.read(TINY)
    assert new.spec == old.spec
    assert all(torch.equal(new.tensors[name], tensor) for name, tensor in old.tensors.items())
    assert new.facts["licence"] == "MIT"
    assert new.facts["source_sha256"] == TINY_SHA256
    assert fetched.path.stat().st_size < len(TINY_BYTES) / 3  # the optimiser stays behind
    assert weights.resolve("tiny") == fetched.path
    assert fetch.fetch(known, cache, told).status == "already there"
    assert len(server.asked) == 1
    assert fetch.fetch(known, cache, told, overwrite=True).status == "downloaded"
    assert told.notes == []


def test_an_unconfirmed_checksum_is_confirmed_aloud(server: Server, cache: Path, told: Told) -> None:
    fetch.fetch(entry(server.url("/a", whole(TINY_BYTES)), confirmed=False), cache, told)
    assert "one source only; this file confirms it" in told.notes[0]


@pytest.mark.parametrize("confirmed", [True, False])
def test_a_wrong_file_is_refused_and_doubt_is_said_where_there_is_some(
    server: Server, cache: Path, told: Told, confirmed: bool
) -> None:
    known = entry(server.url("/a", whole(TINY_BYTES[:-1] + b"x")), confirmed=confirmed)
    with pytest.raises(ModelError, match="checksum differs") as caught:
        fetch.fetch(known, cache, told)
    assert ("comes from one source" in str(caught.value)) is not confirmed
    assert names(cache) == []


def test_without_a_connection_the_line_names_the_address_and_the_place(
    cache: Path, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = entry("http://127.0.0.1:9/tiny.pth")
    with pytest.raises(ModelError) as caught:
        fetch.fetch(known, cache, told)
    assert f"put http://127.0.0.1:9/tiny.pth at {cache / 'tiny.pth'}" in str(caught.value)
    assert str(caught.value).endswith("run liif fetch-weights tiny")
    monkeypatch.setenv("LIIF_CACHE", str(cache / "other"))  # as where --dir names a folder
    with pytest.raises(ModelError, match=rf"run liif fetch-weights tiny --dir {cache}$"):
        fetch.fetch(known, cache, told)
    assert "\n" not in str(caught.value)
    assert names(cache) == []

    (cache / "tiny.pth").write_bytes(TINY_BYTES)
    assert fetch.fetch(known, cache, told).status == "converted"


def test_a_file_put_into_the_cache_is_adopted_when_the_model_is_asked_for(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "registry", lambda: Registry({"tiny": entry("https://127.0.0.1:9/a")}, {}))
    cache.mkdir()
    (cache / "tiny.pth").write_bytes(b"something else")
    with pytest.raises(ModelError, match=r"tiny\.pth: not the expected file: its sha256 is"):
        weights.resolve("tiny")
    (cache / "tiny.pth").write_bytes(TINY_BYTES)
    assert checkpoint.load(weights.resolve("tiny"))


def test_an_interrupted_fetch_leaves_nothing_but_its_part(server: Server, cache: Path, told: Told) -> None:
    known = entry(server.url("/a", whole(TINY_BYTES)))
    with pytest.raises(KeyboardInterrupt):
        fetch.fetch(known, cache, Interrupting())
    assert names(cache) == ["tiny.part", "tiny.part.json"]
    assert names(cache / "partial") == ["tiny.part", "tiny.part.json"]
    fetch.fetch(known, cache, told)
    assert names(cache) == ["tiny.json", "tiny.safetensors"]
    assert str(server.ranges()[1]).startswith("bytes=")


def test_what_fits_the_checksum_but_is_no_model_is_not_kept(server: Server, cache: Path, told: Told) -> None:
    url = server.url("/a", whole(CONTENT))
    with pytest.raises(ModelError, match="not a checkpoint") as caught:
        fetch.fetch(entry(url, content=CONTENT), cache, told)
    assert str(caught.value).startswith(url)
    assert names(cache) == []


def test_a_finished_download_outlives_a_full_disk(
    server: Server, cache: Path, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OutputError("the disk is full")

    known = entry(server.url("/a", whole(TINY_BYTES)))
    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "write", full)
        with pytest.raises(OutputError):
            fetch.fetch(known, cache, told)
    assert names(cache) == ["tiny.part", "tiny.part.json"]
    assert fetch.fetch(known, cache, told).status == "downloaded"
    assert len(server.asked) == 1


def test_an_address_of_ones_own_is_told_its_checksum(
    server: Server, cache: Path, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "_check_url", lambda *_: None)  # the server here speaks no https
    url = server.url("/a", whole(TINY_BYTES))
    fetch.register(url, "mine", cache, told)
    assert told.notes == [f"mine: nothing to hold it against; what came has --sha256 {TINY_SHA256}"]
    assert fetch.register(url, "mine", cache, told).status == "already there"
    with pytest.raises(OutputError, match="another model already"):
        fetch.register(url + "?v=2", "mine", cache, told)


def test_tensors_of_another_network_are_refused(tmp_path: Path, cache: Path, told: Told) -> None:
    content = torch.load(TINY, weights_only=True)
    content["model"]["sd"].popitem()
    torch.save(content, tmp_path / "bad.pth")
    with pytest.raises(ModelError, match="do not fit the network"):
        fetch.register(str(tmp_path / "bad.pth"), "mine", cache, told)
    assert names(cache) == []


class Bomb:
    """Pickles as a call that creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.path), "w")


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
def test_a_file_that_asks_to_run_code_is_refused_and_runs_none(
    server: Server, tmp_path: Path, cache: Path, told: Told, form: str
) -> None:
    trap, bad = tmp_path / "trap", tmp_path / "bad.pth"
    content = {"model": {"name": "liif", "args": {}, "sd": {"a": Bomb(trap)}}}
    if form == "pickle":
        bad.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, bad, _use_new_zipfile_serialization=form == "zip")
    url = server.url("/bad.pth", whole(bad.read_bytes()))
    own = hashlib.sha256(bad.read_bytes()).hexdigest()
    for attempt in (
        lambda: checkpoint.read(weights.resolve(str(bad))),
        lambda: fetch.register(str(bad), "mine", cache, told),
        lambda: fetch.register(url, "mine", cache, told, sha256=own),
        lambda: fetch.fetch(entry(url, content=bad.read_bytes()), cache, told),
    ):
        with pytest.raises(ModelError, match=r"refused|damaged"):
            attempt()
    assert not trap.exists()
    assert names(cache) == []


def test_ones_own_file_is_registered_once(tmp_path: Path, cache: Path, told: Told) -> None:
    first = fetch.register(str(TINY), "mine", cache, told)
    assert first.status == "converted"
    record = read_record(Place(cache, "mine"))
    assert record is not None
    assert (record.source, record.source_sha256, record.parameters) == (str(TINY), TINY_SHA256, 4723)
    assert weights.resolve("mine") == first.path
    assert fetch.register(str(TINY), "mine", cache, told).status == "already there"

    other = tmp_path / "other.safetensors"
    checkpoint.write(other, checkpoint.read(TINY), half=True)
    with pytest.raises(OutputError, match=r"another model already.*--overwrite"):
        fetch.register(str(other), "mine", cache, told)
    assert fetch.register(str(other), "mine", cache, told, overwrite=True).status == "converted"
    assert checkpoint.read(first.path).tensors["encoder.head.0.weight"].dtype == torch.float16


def test_files_of_ones_own_in_a_models_place_are_not_replaced(tmp_path: Path, told: Told) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "model.safetensors").write_bytes(b"a run's model")
    (run / "config.json").write_text('{"a": 1}')
    for name, path in (("model", "model.safetensors"), ("config", "config.json")):
        before = (run / path).read_bytes()
        with pytest.raises(OutputError, match=rf"{path}: already exists, .* --overwrite"):
            fetch.register(str(TINY), name, run, told)
        assert (run / path).read_bytes() == before
    assert fetch.register(str(TINY), "model", run, told, overwrite=True).status == "converted"
    assert fetch.register(str(TINY), "model", run, told).status == "already there"
    (run / "model.safetensors").unlink()  # to make room: it may come again
    assert fetch.register(str(TINY), "model", run, told).status == "converted"


def test_what_is_thrown_away_again_and_again_is_no_progress(
    server: Server, partial: Path, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "_PROGRESS_BYTES", 1000)
    url = server.url("/a", broken_off(CONTENT, 200_000, etag=""))  # nothing tells this version from another
    with pytest.raises(ModelError, match="the connection"):
        download.download(Wanted((url,)), partial, told, QUICK)
    assert len(server.asked) <= QUICK.attempts + 1


@pytest.mark.parametrize(
    "headers", [{"Location": "http://[::1"}, {"Location": "/\xff\xfe"}], ids=["no address", "no text"]
)
def test_addresses_that_are_none_are_an_error_of_the_mirror(
    server: Server, partial: Path, told: Told, headers: dict[str, str]
) -> None:
    good = server.url("/good", whole(CONTENT))
    assert download.download(wanted(server.url("/bad", status(302, **headers)), good), partial, told, QUICK) == good


def test_a_length_of_thousands_of_digits_is_an_error_of_the_mirror(server: Server, partial: Path, told: Told) -> None:
    def endless(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "9" * 5000)
        handler.end_headers()

    good = server.url("/good", whole(CONTENT))
    assert download.download(wanted(server.url("/bad", endless), good), partial, told, QUICK) == good


def test_a_model_whose_replacement_was_cut_off_is_not_there(
    tmp_path: Path, cache: Path, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch.register(str(TINY), "mine", cache, told)
    other = tmp_path / "other.safetensors"
    checkpoint.write(other, checkpoint.read(TINY), half=True)

    def killed(*args: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(fetch, "write_record", killed)
        with pytest.raises(KeyboardInterrupt):
            fetch.register(str(other), "mine", cache, told, overwrite=True)
    assert fetch.register(str(TINY), "mine", cache, told).status == "converted"


def test_a_training_run_is_registered_by_its_folder(tmp_path: Path, cache: Path, told: Told) -> None:
    checkpoint.write(
        tmp_path / checkpoint.RUN_MODEL,
        checkpoint.read(TINY)._replace(facts={"iterations": 3, "note": "made by a test"}),
    )
    fetched = fetch.register(str(tmp_path), "mine", cache, told)
    assert checkpoint.read(fetched.path).facts["iterations"] == 3


def test_a_name_from_the_network_is_never_a_path(server: Server, cache: Path, told: Told) -> None:
    disposition = 'attachment; filename="../../evil.safetensors"'
    url = server.url("/a", whole(TINY_BYTES, Content_Disposition=disposition))
    fetch.register(url, "mine", cache, told, sha256=TINY_SHA256)
    assert names(cache.parent) == ["mine.json", "mine.safetensors"]


@pytest.mark.parametrize(
    ("source", "name", "sha256", "message"),
    [
        (str(TINY), "../mine", None, "--name"),
        (str(TINY), "default", None, "name of the registry"),
        (str(TINY), "rdn-liif", None, "name of the registry"),
        (str(TINY), "auto", None, "name of the registry"),
        (str(TINY), "mine", "abc", "64 hexadecimal digits"),
        ("http://127.0.0.1/a.pth", "mine", None, "add --sha256"),
        ("ftp://127.0.0.1/a.pth", "mine", None, "https://"),
        ("file:///etc/passwd", "mine", None, "https://"),
        ("https:///a", "mine", None, "https://"),
    ],
)
def test_wrong_options_touch_nothing(
    cache: Path, told: Told, source: str, name: str, sha256: str | None, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        fetch.register(source, name, cache, told, sha256=sha256)
    assert not cache.exists()


def test_a_checksum_of_ones_own_is_held_against_a_file(cache: Path, told: Told) -> None:
    with pytest.raises(ModelError, match="nothing was registered"):
        fetch.register(str(TINY), "mine", cache, told, sha256="0" * 64)
    assert fetch.register(str(TINY), "mine", cache, told, sha256=TINY_SHA256.upper()).name == "mine"


def test_a_folder_that_cannot_be_written_is_exit_5(tmp_path: Path, told: Told) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError):
        fetch.register(str(TINY), "mine", tmp_path / "file" / "cache", told)


def test_verifying_reads_every_byte(cache: Path, told: Told) -> None:
    path = fetch.register(str(TINY), "mine", cache, told).path
    assert [verdict.problem for verdict in fetch.verify([], cache)] == [""] * 5  # the bundled ones and this
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert weights.resolve("mine") == path  # of the right size
    (verdict,) = fetch.verify(["mine"], cache)
    assert verdict.problem.startswith("damaged: its sha256 is")
    with pytest.raises(ModelError, match="is not in"):
        fetch.verify(["rdn-liif"], cache)


# --- the command


class Ran(NamedTuple):
    code: int
    out: str
    err: str


Liif = Callable[..., Ran]


@pytest.fixture
def liif() -> Liif:
    def run(*arguments: str) -> Ran:
        result = CliRunner().invoke(app, arguments)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return Ran(result.exit_code, result.stdout, result.stderr)

    return run


@pytest.fixture
def fetch_weights(liif: Liif) -> Liif:
    return functools.partial(liif, "fetch-weights")


def test_the_list_shows_every_model_and_where_it_is(fetch_weights: Liif) -> None:
    fetch_weights("--from", str(TINY), "--name", "mine")
    shown = fetch_weights("--list")
    heads, *rows = shown.out.splitlines()
    assert heads.split() == ["NAME", "WHERE", "SIZE", "SCORES,", "dB", "LICENCE"]
    assert [row.split()[0] for row in rows] == [
        "liif-light",
        "liif-base",
        "liif-jpeg",
        "liif-drawn",
        "edsr-baseline-liif",
        "rdn-liif",
        "mine",
    ]
    for text in ("(default)", "bundled", "not fetched", "yours", "268.2 MB", "DIV2K x2 34.99", "BSD-3-Clause"):
        assert text in shown.out
    (row,) = map(json.loads, fetch_weights("--list", "--json", "rdn-liif").out.splitlines())
    assert (row["name"], row["where"], row["path"]) == ("rdn-liif", "not fetched", None)
    assert row["scores"]["DIV2K"]["x30"] == 20.59


def test_a_file_gives_its_name_without_its_suffix_and_a_folder_all_of_it(tmp_path: Path) -> None:
    (tmp_path / "V1.5").mkdir()
    (tmp_path / "net.v2.pth").touch()
    given = (tmp_path / "V1.5", tmp_path / "net.v2.pth", "https://host/net.v3.pth")
    assert [fetch.name_of(str(source)) for source in given] == ["v1.5", "net.v2", "net.v3"]


def test_ones_own_model_is_named_after_its_file_unless_told(fetch_weights: Liif, cache: Path) -> None:
    assert fetch_weights("--from", str(TINY)).out.startswith(
        f"official_tiny: converted: {cache / 'official_tiny.safetensors'}"
    )
    ran = fetch_weights("--from", str(TINY), "--name", "mine", "--json")
    row = json.loads(ran.out)
    assert row == {
        "name": "mine",
        "path": str(cache / "mine.safetensors"),
        "status": "converted",
        "bytes": row["bytes"],
    }
    assert ran.err == ""


def test_another_folder_serves_as_the_cache(fetch_weights: Liif, cache: Path, tmp_path: Path) -> None:
    fetch_weights("--from", str(TINY), "--name", "mine", "--dir", str(tmp_path / "models"))
    assert names(tmp_path / "models") == ["mine.json", "mine.safetensors"]
    assert not cache.exists()


def test_a_model_of_the_registry_may_come_from_elsewhere(
    fetch_weights: Liif, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = Registry({"tiny": entry("https://127.0.0.1:9/a", confirmed=False)}, {})
    for module in (weights, fetch, listing):
        monkeypatch.setattr(module, "registry", lambda: known)
    assert fetch_weights("tiny", "--from", str(Path(__file__))).code == 3
    ran = fetch_weights("tiny", "--from", str(TINY))
    assert ran.code == 0
    assert "this file confirms it" in ran.err
    assert "cached" in fetch_weights("--list").out
    assert fetch_weights("--verify").out == "tiny: as recorded\n"


def test_one_model_that_fails_does_not_keep_the_others_away(
    fetch_weights: Liif, server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    good = entry(server.url("/good", whole(TINY_BYTES)))
    bad = replace(entry(server.url("/bad", page())), name="bad")
    known = Registry({"bad": bad, "tiny": good}, {})
    for module in (weights, fetch, listing):
        monkeypatch.setattr(module, "registry", lambda: known)
    ran = fetch_weights("--all")
    assert ran.code == 3
    assert ran.out.startswith("tiny: downloaded")
    assert "a web page, not the file" in ran.err
    assert ran.err.endswith("1 of 2 models not fetched: bad\n")
    assert names(cache) == ["tiny.json", "tiny.safetensors"]


def test_a_damaged_model_is_exit_3(fetch_weights: Liif, cache: Path) -> None:
    fetch_weights("--from", str(TINY), "--name", "mine")
    (cache / "mine.safetensors").write_bytes(b"cut")
    ran = fetch_weights("--verify")
    assert ran.code == 3
    assert "liif-light: as recorded" in ran.out
    assert "mine: damaged" in ran.out
    assert "what comes with the package: install liif again" in ran.err
    assert json.loads(fetch_weights("--verify", "--json", "mine").out)["ok"] is False


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--all", "rdn-liif"],
        ["--all", "--list"],
        ["--verify", "--from", "a.pth"],
        ["rdn-liif", "--name", "mine"],
        ["rdn-liif", "--sha256", "0" * 64],
        ["rdn-liif", "--from", "a.pth", "--name", "mine"],
        ["rdn-liif", "edsr-baseline-liif", "--from", "a.pth"],
        ["default", "--from", "a.pth"],
        ["--from", "A b.pth"],
        ["--from", "https://[abc/x.pth"],
    ],
)
def test_options_that_contradict_are_exit_2(fetch_weights: Liif, arguments: list[str]) -> None:
    ran = fetch_weights(*arguments)
    assert ran.code == 2
    assert ran.out == ""


def test_an_unknown_model_is_exit_3(fetch_weights: Liif) -> None:
    ran = fetch_weights("rdn-lif")
    assert ran.code == 3
    assert "did you mean rdn-liif?" in ran.err


def test_two_processes_at_once_both_succeed_with_one_file(server: Server, cache: Path) -> None:
    first_is_at_it = threading.Event()

    def slow(to: Handler) -> None:
        first_is_at_it.wait(20)
        whole(TINY_BYTES)(to)

    url = server.url("/tiny.pth", slow)
    command = [
        sys.executable,
        "-m",
        "liif_cli",
        "fetch-weights",
        "--from",
        url,
        "--sha256",
        TINY_SHA256,
        "--name",
        "tiny",
    ]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    # Time enough for the other process to find the lock taken.
    threading.Timer(1.0, first_is_at_it.set).start()
    results = [process.communicate(timeout=60) for process in both]
    assert [process.returncode for process in both] == [0, 0], results
    assert sorted(out.split(": ")[1] for out, _ in results) == ["already there", "downloaded"]
    assert len(server.asked) == 1
    assert names(cache) == ["tiny.json", "tiny.safetensors"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows sends no SIGINT")
def test_ctrl_c_leaves_a_part_that_the_next_run_goes_on_from(server: Server, cache: Path, fetch_weights: Liif) -> None:
    url = server.url("/tiny.pth", stalled(TINY_BYTES, 70_000), whole(TINY_BYTES))
    arguments = ["--from", url, "--sha256", TINY_SHA256, "--name", "tiny"]
    process = subprocess.Popen(
        [sys.executable, "-m", "liif_cli", "fetch-weights", *arguments], stderr=subprocess.PIPE, text=True
    )
    part = cache / "partial" / "tiny.part"
    for _ in range(500):
        if part.exists() and part.stat().st_size:
            break
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (130, "liif: interrupted\n")
    assert names(cache) == ["tiny.part", "tiny.part.json"]
    assert fetch_weights(*arguments).code == 0
    assert server.ranges() == [None, "bytes=65536-"]
    assert names(cache) == ["tiny.json", "tiny.safetensors"]


def test_a_password_in_an_address_is_not_written_down(server: Server, cache: Path, fetch_weights: Liif) -> None:
    url = server.url("/tiny.pth", whole(TINY_BYTES)).replace("http://", "http://me:secret@")
    ran = fetch_weights("--from", url, "--sha256", TINY_SHA256, "--name", "mine")
    assert ran.code == 0
    assert server.asked[0][1]["Authorization"].startswith("Basic ")
    assert "secret" not in ran.out + ran.err
    assert not any(b"secret" in path.read_bytes() for path in cache.rglob("*") if path.is_file())


@pytest.mark.parametrize("command", ["upscale", "eval"])
def test_no_command_runs_code_from_a_checkpoint(liif: Liif, tmp_path: Path, command: str) -> None:
    if command not in get_command(app).commands:  # type: ignore[attr-defined]
        pytest.skip(f"liif has no {command} yet")
    trap, bad, pictures = tmp_path / "trap", tmp_path / "bad.pth", tmp_path / "pictures"
    torch.save({"model": {"name": "liif", "args": {}, "sd": Bomb(trap)}}, bad)
    pictures.mkdir()
    Image.new("RGB", (24, 16)).save(pictures / "in.png")
    given = {
        "upscale": (str(pictures / "in.png"), "--scale", "2"),
        "eval": ("--dataset", str(pictures), "--scales", "2"),
    }
    ran = liif(command, *given[command], "-m", str(bad))
    assert ran.code == 3, ran.err
    assert "refused" in ran.err
    assert not trap.exists()
    assert names(pictures) == ["in.png"]


def test_upscaling_with_a_model_that_is_not_here_names_the_command(liif: Liif, tmp_path: Path) -> None:
    Image.new("RGB", (24, 16)).save(tmp_path / "in.png")
    ran = liif("upscale", str(tmp_path / "in.png"), "--scale", "2", "-m", "rdn-liif")
    assert ran.code == 3
    assert "liif fetch-weights rdn-liif" in ran.err
    assert names(tmp_path) == ["in.png"]


def test_help_does_not_import_torch() -> None:
    code = (
        "import sys; sys.argv = ['liif', 'fetch-weights', '--help']; from liif_cli.cli import app\n"
        "try: app()\nfinally: print('torch' in sys.modules, file=sys.stderr)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, "False\n")
    assert "--from" in ran.stdout
