"""Data sets are found where they are, pairs are those of the protocol, and archives are not trusted."""

import functools
import hashlib
import http.server
import io
import shutil
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from liif_cli.benchmarks import KNOWN, find
from liif_cli.benchmarks import fetch as fetching
from liif_cli.benchmarks.datasets import low_res_size, painted_size, read_rgb, reduce
from liif_cli.benchmarks.fetch import Source, fetch, fetch_missing, unpack
from liif_cli.errors import InputError, UsageError
from liif_cli.protocol import Protocol
from liif_cli.resize import matlab_reduce, pil_bicubic
from liif_cli.weights.download import Patience, download

BENCHMARK = Path(__file__).parents[2] / "shared" / "data" / "benchmark"
needs_benchmark = pytest.mark.skipif(not BENCHMARK.is_dir(), reason=f"no benchmark pictures at {BENCHMARK}")
PAPER = Protocol()


def picture(path: Path, height: int = 48, width: int = 60, seed: int = 0) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


def set5(root: Path, count: int = 2) -> Path:
    for number in range(count):
        picture(root / "Set5" / "HR" / f"p{number}.png", seed=number)
    return root


# --- where they are


@pytest.mark.parametrize("below", [".", "benchmark"])
def test_a_known_set_is_found_with_and_without_the_archive_s_folder(tmp_path: Path, below: str) -> None:
    set5(tmp_path / below)
    found = find("SET5", [tmp_path / "elsewhere", tmp_path])
    assert (found.title, [truth.name for truth in found.truths], found.rgb) == ("Set5", ["p0", "p1"], False)


def test_two_pictures_of_a_benchmark_under_one_name_are_told_of(tmp_path: Path) -> None:
    set5(tmp_path)
    picture(tmp_path / "Set5" / "HR" / "p1.bmp")
    with pytest.raises(InputError, match=r"p1\.bmp and p1\.png: two pictures of one name; rename one"):
        find("set5", [tmp_path])


@pytest.mark.parametrize("below", [".", "DIV2K"])
def test_div2k_has_its_own_layout_and_is_scored_in_rgb(tmp_path: Path, below: str) -> None:
    pixels = picture(tmp_path / below / "DIV2K_valid_HR" / "0801.png")
    low_res = tmp_path / below / "DIV2K_valid_LR_bicubic" / "X2" / "0801x2.png"
    low_res.parent.mkdir(parents=True)
    Image.fromarray(matlab_reduce(pixels, 2)).save(low_res)
    found = find("div2k", [tmp_path])
    assert (found.title, found.rgb, found.source(2, PAPER)) == ("DIV2K", True, "files")
    assert PAPER.channel(found.rgb) == "rgb"
    assert PAPER.shave(2, found.rgb) == 8


def test_the_folder_of_a_known_set_named_by_its_path_is_that_set(tmp_path: Path) -> None:
    set5(tmp_path)
    picture(tmp_path / "DIV2K_valid_HR" / "0801.png")
    assert find(str(tmp_path / "Set5"), []).title == "Set5"
    assert find(str(tmp_path / "DIV2K_valid_HR"), []).rgb


def test_any_folder_of_pictures_will_do_and_one_with_hr_and_lr_is_understood(tmp_path: Path) -> None:
    picture(tmp_path / "mine" / "a.png")
    picture(tmp_path / "mine" / "deeper" / "b.webp")
    mine = find(str(tmp_path / "mine"), [])
    assert (mine.title, [truth.name for truth in mine.truths]) == ("mine", ["a.png", "deeper/b.webp"])
    picture(tmp_path / "own" / "HR" / "a.png")
    picture(tmp_path / "own" / "LR_bicubic" / "X2" / "ax2.png", 24, 30)
    own = find(str(tmp_path / "own"), [])
    assert (own.title, own.source(2, PAPER), own.source(3, PAPER)) == ("own", "files", "matlab")


def test_what_is_unknown_absent_or_empty_says_so_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"unknown data set 'set6'.*set5, set14, b100, urban100, div2k.*folder"):
        find("set6", [tmp_path])
    with pytest.raises(InputError, match=r"set5: not here.*Set5/HR.*--data.*--fetch"):
        find("set5", [tmp_path])
    with pytest.raises(InputError, match="no pictures in it"):
        find(str(tmp_path), [])


# --- pairs


@pytest.mark.parametrize("scale", [2.0, 3.0, 4.0])
def test_low_res_files_are_used_at_x2_x3_x4_and_made_exactly_where_they_are_missing(
    tmp_path: Path, scale: float
) -> None:
    found = find("set5", [set5(tmp_path)])
    pixels = read_rgb(found.truths[0].path)
    made = found.pair(found.truths[0], scale, PAPER)
    assert made.source == "matlab"
    np.testing.assert_array_equal(made.low_res, matlab_reduce(pixels, int(scale)))
    for truth in found.truths:
        file = tmp_path / "Set5" / "LR_bicubic" / f"X{scale:g}" / f"{truth.name}x{scale:g}.png"
        marked = np.zeros_like(made.low_res)
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(marked).save(file)
    found = find("set5", [tmp_path])
    pair = found.pair(found.truths[0], scale, PAPER)
    assert pair.source == "files"
    assert not pair.low_res.any()
    again = found.pair(found.truths[0], scale, Protocol(degradation="matlab"))
    np.testing.assert_array_equal(again.low_res, made.low_res)


@pytest.mark.parametrize("scale", [1.5, 2.7, 5.0, 6.0])
def test_other_scales_are_made_by_pil_from_the_cropped_truth(tmp_path: Path, scale: float) -> None:
    pixels = picture(tmp_path / "a.png", 61, 47)
    found = find(str(tmp_path), [])
    pair = found.pair(found.truths[0], scale, Protocol(border=0))
    size = int(61 / scale), int(47 / scale)
    cropped = round(size[0] * scale), round(size[1] * scale)
    assert pair.source == "pil"
    np.testing.assert_array_equal(pair.high_res, pixels[: cropped[0], : cropped[1]])
    np.testing.assert_array_equal(pair.low_res, pil_bicubic(pixels[: cropped[0], : cropped[1]], size))


def test_a_quotient_that_is_whole_but_for_rounding_loses_no_pixel() -> None:
    assert low_res_size((21, 33), 0.3) == (70, 110)
    assert painted_size((5, 7), 2.5) == (12, 18)


def test_every_degradation_keeps_a_flat_picture_flat() -> None:
    flat = np.full((40, 30, 3), 99, np.uint8)
    for how in ("matlab", "pil", "torch"):
        for scale in (2.0, 2.6):
            assert (reduce(flat, scale, how) == 99).all()
            assert reduce(flat, scale, how).shape == (*low_res_size((40, 30), scale), 3)


@needs_benchmark
@pytest.mark.parametrize("name", ["set5", "set14"])
def test_what_is_made_equals_the_published_files_bit_for_bit(name: str) -> None:
    found = find(name, [BENCHMARK.parent])
    assert len(found.truths) == KNOWN[name].pictures
    for truth in found.truths:
        whole = read_rgb(truth.path)
        pairs = [found.pair(truth, 4.0, Protocol(degradation=how), whole) for how in ("paper", "matlab")]
        assert [pair.source for pair in pairs] == ["files", "matlab"]
        np.testing.assert_array_equal(pairs[0].low_res, pairs[1].low_res, err_msg=truth.name)


def test_what_does_not_belong_together_is_told_before_any_work(tmp_path: Path) -> None:
    set5(tmp_path)
    folder = tmp_path / "Set5" / "LR_bicubic" / "X2"
    picture(folder / "p0x2.png", 24, 30)
    with pytest.raises(InputError, match=r"p1x2\.png: missing.*--degradation matlab"):
        find("set5", [tmp_path]).check(2, PAPER)
    picture(folder / "p1x2.png", 24, 31)
    with pytest.raises(InputError, match=r"p1x2\.png: does not belong to p1\.png.*24 and 31.*24 and 30"):
        find("set5", [tmp_path]).check(2, PAPER)
    found = find("set5", [tmp_path])
    with pytest.raises(InputError, match="does not belong"):
        found.pair(found.truths[1], 2, PAPER)


@pytest.mark.parametrize("scale", [49.0, 19.0])
def test_a_scale_too_large_for_a_picture_is_told_before_any_work(tmp_path: Path, scale: float) -> None:
    found = find("set5", [set5(tmp_path)])
    with pytest.raises(InputError, match=rf"p0\.png: too small for x{scale:g}: of its shorter side of 48 pixels"):
        found.check(scale, PAPER)
    found.check(8, PAPER)


def test_unknown_words_of_the_protocol_are_refused() -> None:
    for options in ({"color": "cmyk"}, {"rounding": "6bit"}, {"degradation": "box"}, {"border": -1}):
        with pytest.raises(UsageError, match=str(next(iter(options.values())))):
            Protocol(**options)
    assert Protocol().is_published
    assert not Protocol(border=3).is_published
    assert (PAPER.shave(2.5, False), PAPER.shave(2.5, True), PAPER.reduction(3), PAPER.reduction(3.5)) == (
        (3, 9, "matlab", "pil")
    )  # fmt: skip


# --- fetching


def png(seed: int, size: tuple[int, int] = (16, 12)) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)).save(out, "PNG")
    return out.getvalue()


def tar_of(files: dict[str, bytes], *extra: tarfile.TarInfo) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        for info in extra:
            tar.addfile(info)
    return out.getvalue()


def zip_of(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as zipped:
        for name, content in files.items():
            zipped.writestr(name, content)
    return out.getvalue()


SET5 = {f"benchmark/Set5/HR/p{number}.png": png(number) for number in range(5)}


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        server: Any = self.server
        server.ranges.append(self.headers.get("Range"))
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").removesuffix("-"))
        content = server.content
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.send_header("ETag", '"one"')
        self.end_headers()
        stop = server.break_after.pop(0) if server.break_after else None
        self.wfile.write(content[start:stop])

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Serve an archive as the only source of the known sets; gives the server."""
    monkeypatch.setenv("LIIF_CACHE", str(tmp_path / "cache"))
    server: Any = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.ranges, server.break_after = [], []
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()

    def start(content: bytes, sets: tuple[str, ...] = ("set5",), **facts: Any) -> Any:
        server.content = content
        url = f"http://127.0.0.1:{server.server_port}/archive"
        source = Source("archive", url, sets, **facts)
        monkeypatch.setattr(fetching, "sources", lambda: [source])
        return server

    yield start
    server.shutdown()
    thread.join()
    server.server_close()


class Notes(list[str]):
    def note(self, text: str) -> None:
        self.append(text)

    def progress(self, done_bytes: int, total_bytes: int | None) -> None:
        pass


@pytest.mark.parametrize("pack", [tar_of, zip_of])
def test_a_fetched_set_is_found_and_not_fetched_again(serve: Callable[..., Any], pack: Callable[..., bytes]) -> None:
    server = serve(pack(SET5))
    notes = Notes()
    fetch_missing(["set5", "some/folder"], [], notes)
    found = find("set5", [fetching.data_folder()])
    assert [truth.path.read_bytes() for truth in found.truths] == list(SET5.values())
    assert any("no checksum of it is known" in note for note in notes)
    fetch_missing(["set5"], [], notes)
    assert len(server.ranges) == 1
    assert not list((fetching.data_folder() / "partial").glob("*.part*"))
    shutil.rmtree(fetching.data_folder() / "Set5")
    fetch_missing(["set5"], [], notes)
    assert len(server.ranges) == 2
    assert len(find("set5", [fetching.data_folder()]).truths) == 5


def test_a_set_that_is_in_the_data_folder_is_not_fetched(serve: Callable[..., Any], tmp_path: Path) -> None:
    server = serve(tar_of(SET5))
    fetch_missing(["set5"], [set5(tmp_path)], Notes())
    assert server.ranges == []


def test_a_broken_download_goes_on_where_it_stopped(serve: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    content = tar_of({**SET5, "benchmark/padding": bytes(300_000)})
    server = serve(content, sha256=hashlib.sha256(content).hexdigest())
    server.break_after = [200_000]
    quick = functools.partial(download, patience=Patience(backoff_s=0.01))
    monkeypatch.setattr(fetching, "download", quick)
    fetch_missing(["set5"], [], Notes())
    assert server.ranges[0] is None
    assert server.ranges[1].startswith("bytes=1")
    assert len(find("set5", [fetching.data_folder()]).truths) == 5


def test_another_file_than_the_expected_one_is_not_unpacked(serve: Callable[..., Any]) -> None:
    serve(tar_of(SET5), sha256="0" * 64)
    with pytest.raises(InputError, match=r"archive: not fetched: .*checksum differs; by other means: unpack http"):
        fetch_missing(["set5"], [], Notes())
    assert not (fetching.data_folder() / "Set5").exists()


def test_an_archive_without_the_set_or_with_too_few_pictures_is_refused(serve: Callable[..., Any]) -> None:
    serve(tar_of(dict(list(SET5.items())[:3])))
    with pytest.raises(InputError, match="Set5/HR: 3 pictures came, not 5"):
        fetch_missing(["set5"], [], Notes())
    serve(tar_of({**SET5, "benchmark/Set5/LR_bicubic/X2/p0x2.png": png(0)}))  # as an archive that was cut off
    with pytest.raises(InputError, match="Set5/LR_bicubic/X2: 1 pictures came, not 5"):
        fetch_missing(["set5"], [], Notes())
    serve(tar_of({"benchmark/readme.txt": b"nothing"}))
    with pytest.raises(InputError, match="no pictures of a known set"):
        fetch_missing(["set5"], [], Notes())
    assert not list(fetching.data_folder().glob("Set*"))


def test_members_that_lead_elsewhere_are_passed_over(tmp_path: Path) -> None:
    link = tarfile.TarInfo("benchmark/Set5/HR/link.png")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    hard = tarfile.TarInfo("benchmark/Set5/HR/hard.png")
    hard.type, hard.linkname = tarfile.LNKTYPE, "../../../../etc/passwd"
    bad = {
        "../outside.png": png(9),
        "/absolute.png": png(9),
        "benchmark/Set5/HR/../../../../outside.png": png(9),
        "benchmark/Set5/HR/.hidden.png": png(9),
        "benchmark/Set9/HR/a.png": png(9),
    }
    archive = tmp_path / "in" / "deep" / "a.tar"
    archive.parent.mkdir(parents=True)
    archive.write_bytes(tar_of({**SET5, **bad}, link, hard))
    cache = tmp_path / "in" / "deep" / "cache"
    assert unpack(archive, cache) == ["Set5/HR"]
    files = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file())
    assert files == ["in/deep/a.tar", *(f"in/deep/cache/Set5/HR/p{number}.png" for number in range(5))]


@pytest.mark.parametrize("content", [tar_of(SET5)[:1500], zip_of(SET5)[:400], b"no archive at all", b""])
def test_a_damaged_archive_leaves_nothing(tmp_path: Path, content: bytes) -> None:
    archive = tmp_path / "a.part"
    archive.write_bytes(content)
    with pytest.raises(InputError, match=r"damaged archive|pictures came|no pictures"):
        unpack(archive, tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("*.png"))


def test_a_member_too_large_for_a_picture_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "_LARGEST_MEMBER_BYTES", 100)
    archive = tmp_path / "a.part"
    archive.write_bytes(zip_of(SET5))
    with pytest.raises(InputError, match="too large for a picture"):
        unpack(archive, tmp_path / "cache")


def test_every_known_set_has_a_source_over_https() -> None:
    sources = fetching.sources()
    assert {name for source in sources for name in source.sets} == set(KNOWN)
    assert all(source.url.startswith("https://") for source in sources)


def test_the_address_is_told_when_nobody_answers(tmp_path: Path) -> None:
    source = Source("archive", "http://127.0.0.1:9/archive.tar", ("set5",))
    with pytest.raises(InputError, match=r"archive: not fetched: 127\.0\.0\.1: .*unpack http://127\.0\.0\.1:9"):
        fetch(source, tmp_path, Notes())


def test_the_pictures_that_say_a_set_is_there_are_fetched_last() -> None:
    for known in KNOWN:
        names = [source.name for source in fetching.sources() if known in source.sets]
        assert names[-1] in ("benchmark", "DIV2K_valid_HR")
