"""What is read, what it is called when it is written, and what is said about it."""

import functools
import io
import json
import os
import re
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY, Cli, photo, save
from PIL import Image, ImageCms, ImageDraw, ImageFont

import liif_cli
from liif_cli import checkpoint, jobs, weights
from liif_cli.engine import Engine, joined
from liif_cli.images import from_array, read, read_header, write
from liif_cli.sizing import Sizing


def tree(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def records(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.splitlines()]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder as people have them: pictures, a folder within, and junk."""
    folder = tmp_path / "photos"
    save(folder / "a.jpg")
    save(folder / "b.PNG")
    save(folder / "inner/c.webp")
    save(folder / "inner/deep/a.jpg")
    save(folder / ".thumbnails/a.png")
    save(folder / ".hidden.png")
    (folder / "notes.txt").write_text("junk")
    (folder / "folder.png").mkdir()
    os.mkfifo(folder / "pipe.png")
    return folder


def test_a_picture_is_written_beside_its_input(upscale: Cli, tmp_path: Path) -> None:
    save(tmp_path / "my photo.jpg", photo(20, 30))
    ran = upscale("my photo.jpg", "--scale", "2.70")
    assert ran.code == 0
    assert ran.out.startswith("my photo_x2.7.png  81x54 from 30x20 in ")
    assert ran.err == ""
    assert upscale("my photo.jpg", "--width", "50").out.startswith("my photo_50x33.png  50x33")
    assert tree(tmp_path) == ["my photo.jpg", "my photo_50x33.png", "my photo_x2.7.png"]


def test_a_pipe_is_read_once(upscale: Cli, tmp_path: Path) -> None:
    """As ``liif upscale <(curl ...)`` has it; the second time with a name that waits for the size."""
    os.mkfifo(tmp_path / "pipe")
    save(tmp_path / "photo.png", photo(20, 30))
    for size in (("--scale", "2"), ("--width", "60")):
        writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=((tmp_path / "photo.png").read_bytes(),))
        writer.start()
        ran = upscale("pipe", "photo.png", *size, "-o", "out", "--overwrite")
        writer.join()
        assert ran.code == 0, ran.err
    assert tree(tmp_path / "out") == ["photo_60x40.png", "photo_x2.png", "pipe_60x40.png", "pipe_x2.png"]
    assert (tmp_path / "out/pipe_x2.png").read_bytes() == (tmp_path / "out/photo_x2.png").read_bytes()


def test_a_link_to_where_nobody_may_look_is_one_failure(
    upscale: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path / "photos/a.png", photo(8, 8))
    save(tmp_path / "photos/b.png", photo(8, 8))
    before = Path.stat

    def stat(path: Path, **options: Any) -> os.stat_result:
        if path.name == "a.png":
            raise PermissionError(13, "Permission denied")
        return before(path, **options)

    monkeypatch.setattr(Path, "stat", stat)
    ran = upscale("photos", "--scale", "2", "-o", "out")
    assert ran.code == 1
    assert "photos/a.png: no permission to read it" in ran.err
    assert tree(tmp_path / "out") == ["b_x2.png"]


def test_linked_folders_are_looked_into_once(upscale: Cli, tmp_path: Path) -> None:
    save(tmp_path / "elsewhere/a.png", photo(8, 8))
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/linked").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (tmp_path / "elsewhere/back").symlink_to(tmp_path / "photos", target_is_directory=True)
    assert upscale("photos", "-r", "--scale", "2", "-o", "out").code == 0
    assert tree(tmp_path / "out") == ["linked/a_x2.png"]


def test_what_is_done_is_skipped_though_its_source_is_gone_bad(upscale: Cli, tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        save(tmp_path / "photos" / name, photo(8, 8))
    assert upscale("photos", "--scale", "2", "-o", "out").code == 0
    (tmp_path / "photos/b.png").write_bytes(b"nothing")
    assert upscale("photos", "--scale", "2", "-o", "out", "--skip-existing").code == 0


def test_folders_without_and_with_what_is_in_them(upscale: Cli, tmp_path: Path, photos: Path) -> None:
    assert upscale("photos", "--scale", "2", "-o", "flat").code == 0
    assert tree(tmp_path / "flat") == ["a_x2.png", "b_x2.png"]
    assert upscale("photos", "-r", "--scale", "2", "-o", "all").code == 0
    assert tree(tmp_path / "all") == ["a_x2.png", "b_x2.png", "inner/c_x2.png", "inner/deep/a_x2.png"]


def test_outputs_within_the_folder_are_no_inputs_the_next_time(upscale: Cli, tmp_path: Path, photos: Path) -> None:
    arguments = ["photos", "-r", "--scale", "2", "--skip-existing"]
    for _ in range(2):
        assert upscale(*arguments, "-o", "photos/large").code == 0
        assert tree(photos / "large") == ["a_x2.png", "b_x2.png", "inner/c_x2.png", "inner/deep/a_x2.png"]
    first = upscale(*arguments)
    assert first.code == 0
    second = upscale(*arguments)
    assert second.code == 0
    assert "left out: photos/a_x2.png" in second.err
    assert len([name for name in tree(photos) if "_x2_x2" in name]) == 0 + 4  # those of photos/large, enlarged once


def test_outputs_of_another_size_are_no_inputs_either(upscale: Cli, photos: Path) -> None:
    before = len(tree(photos))
    for size in (["--scale", "2"], ["--size", "9x9"], ["--scale", "2.5", "--box", "0,0,4,4.5"], ["--scale", "3"]):
        assert upscale("photos", *size).code == 0
    assert len(tree(photos)) == before + 2 * 4
    assert not [name for name in tree(photos) if name.count("_") > 2]
    assert "a_x2.5_0,0,4,4.5.png" in tree(photos)


def test_files_of_other_kinds_are_named_and_left_out(upscale: Cli, photos: Path) -> None:
    for name in ("phone.mov", "notes.txt", ".hidden", "raw.cr2", "sound.wav"):
        (photos / name).write_bytes(b"something")
    ran = upscale("photos", "--scale", "2")
    assert ran.code == 0
    assert ran.err.startswith(
        "liif: left out: photos/notes.txt, photos/phone.mov, photos/raw.cr2 and 1 more; no pictures"
    )
    assert upscale("photos", "--scale", "2", "-q", "--overwrite").err == ""
    assert "notes.txt" not in upscale("photos/a.jpg", "photos/*.jp*", "--scale", "3").err


def test_windows_of_a_picture_have_names_of_their_own(upscale: Cli, tmp_path: Path, photos: Path) -> None:
    for box in ("0,0,4,4", "4,0,8,4"):
        assert upscale("photos/a.jpg", "--scale", "3", "--box", box, "-o", "out/", "--skip-existing").code == 0
    assert tree(tmp_path / "out") == ["a_x3_0,0,4,4.png", "a_x3_4,0,8,4.png"]


def test_patterns(upscale: Cli, tmp_path: Path, photos: Path) -> None:
    assert upscale("photos/*.jpg", "photos/**/*.webp", "--scale", "2", "-o", "out").code == 0
    assert tree(tmp_path / "out") == ["a_x2.png", "c_x2.png"]
    assert upscale("pho*", "--scale", "3", "-o", "folders").code == 0  # as a shell would hand it in
    assert tree(tmp_path / "folders") == ["a_x3.png", "b_x3.png"]
    assert upscale("photos/*", "--scale", "3", "-o", "both").code == 0
    assert {"a_x3.png", "b_x3.png", "c_x3.png"} <= set(tree(tmp_path / "both"))
    # A name that looks like a pattern but is there is itself.
    save(tmp_path / "new/[1].png")
    assert upscale("new/[1].png", "--scale", "2").code == 0
    assert tree(tmp_path / "new") == ["[1].png", "[1]_x2.png"]


def test_an_input_that_is_named_twice_is_done_once(upscale: Cli, tmp_path: Path, photos: Path) -> None:
    ran = upscale("photos", "photos/a.jpg", photos / "a.jpg", "photos/*.jpg", "--scale", "2", "--json")
    assert [record["input"] for record in records(ran.out)] == ["photos/a.jpg", "photos/b.PNG"]


@pytest.mark.parametrize("separator", [b"\n", b"\r\n", b"\0"])
def test_lists_of_files(upscale: Cli, tmp_path: Path, photos: Path, separator: bytes) -> None:
    save(tmp_path / "new/*.png")
    content = separator.join([b"photos/a.jpg", b"new/*.png", b"photos/inner", b""])
    (tmp_path / "list").write_bytes(content)
    from_file = upscale("--files-from", "list", "--scale", "2", "--json", "-o", "one")
    from_stdin = upscale("--files-from", "-", "--scale", "2", "--json", "-o", "two", stdin=content)
    for ran in (from_file, from_stdin):
        assert (ran.code, len(records(ran.out))) == (0, 3)
    assert tree(tmp_path / "one") == tree(tmp_path / "two") == ["*_x2.png", "a_x2.png", "c_x2.png"]
    assert upscale("-", "--files-from", "-", "--scale", "2").code == 2


def test_names_that_are_no_text(upscale: Cli, tmp_path: Path) -> None:
    try:
        save(tmp_path / os.fsdecode(b"caf\xe9 \xff.png"))
    except OSError:
        pytest.skip("this file system takes text only")
    ran = upscale("--files-from", "-", "--scale", "2", stdin=b"caf\xe9 \xff.png")
    assert ran.code == 0
    assert ran.raw.startswith(b"caf\xe9 \xff_x2.png")
    assert upscale("--files-from", "-", "--scale", "3", "--json", stdin=b"caf\xe9 \xff.png").code == 0
    deep = tmp_path / os.fsdecode(b"b\xe9") / "deep.png"
    deep.parent.mkdir()
    Image.fromarray(np.arange(600, dtype=np.uint16).reshape(20, 30) * 99).save(deep)
    for extension in ("png", "tif", "dzi"):
        ran = upscale(str(deep.parent), "--scale", "2", "--format", extension, "--depth", "8", "-o", "out")
        assert (ran.code, ran.err) == (0, "")
    assert upscale("out/deep_x2.tif", "--scale", "2", "-o", "again.png").code == 0


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "utf-8"])
def test_names_that_standard_output_has_no_characters_for(upscale: Cli, tmp_path: Path, encoding: str) -> None:
    for name in ("a", "b\N{PARTY POPPER}\u0142", "c"):
        save(tmp_path / "in" / f"{name}.png")
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    run = subprocess.run(
        [sys.executable, "-m", "liif_cli", "upscale", "in", "--scale", "2", "-o", "out", "-m", str(TINY)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
    )
    assert run.returncode == 0, run.stderr
    assert b"Traceback" not in run.stderr
    assert len(run.stdout.splitlines()) == 3
    assert (b"b\\U0001f389\\u0142" in run.stdout) == (encoding != "utf-8")


def test_standard_input_to_standard_output(upscale: Cli, tmp_path: Path) -> None:
    content = save(tmp_path / "photo.png").read_bytes()
    ran = upscale("-", "--scale", "2", stdin=content)
    assert (ran.code, ran.err) == (0, "")
    assert Image.open(io.BytesIO(ran.raw)).size == (64, 48)
    ran = upscale("-", "--scale", "2", "-o", "-", "--format", "jpg", stdin=content)
    assert Image.open(io.BytesIO(ran.raw)).format == "JPEG"
    assert upscale("-", "--scale", "2", "-o", "named.webp", stdin=content).code == 0
    assert upscale("-", "--width", "50", "-o", "folder/", stdin=content).code == 0
    assert tree(tmp_path) == ["folder/stdin_50x38.png", "named.webp", "photo.png"]


def test_a_file_called_dash_is_a_file(upscale: Cli, tmp_path: Path) -> None:
    save(tmp_path / "photo.png").rename(tmp_path / "-")
    assert upscale("./-", "--scale", "2").code == 0
    assert tree(tmp_path) == ["-", "-_x2.png"]


def test_where_outputs_go(upscale: Cli, tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    save(tmp_path / "b.png")
    assert upscale("a.png", "--scale", "2", "-o", "one.png").code == 0
    assert upscale("a.png", "--scale", "2", "-o", "two/").code == 0
    assert upscale("a.png", "--scale", "2", "-o", "three").code == 0
    assert upscale("a.png", "b.png", "--scale", "2", "-o", "four.1").code == 0
    assert upscale("a.png", "b.png", "--scale", "2", "-o", "five.png").code == 2
    assert upscale("a.png", "--scale", "2", "-o", "a.png", "--overwrite").code == 0
    made = ["a.png", "b.png", "four.1/a_x2.png", "four.1/b_x2.png", "one.png", "three/a_x2.png", "two/a_x2.png"]
    assert tree(tmp_path) == made
    with Image.open(tmp_path / "a.png") as image:
        assert image.size == (64, 48)


def test_formats(upscale: Cli, tmp_path: Path) -> None:
    save(tmp_path / "photo.png")
    expected = {"png": "PNG", "jpg": "JPEG", ".WebP": "WEBP", "tif": "TIFF", "avif": "AVIF", "bmp": "BMP", "gif": "GIF"}
    for extension, format in expected.items():
        assert upscale("photo.png", "--scale", "2", "--format", extension).code == 0
        with Image.open(tmp_path / f"photo_x2.{extension.lower().lstrip('.')}") as image:
            assert (image.format, image.size) == (format, (64, 48))
    assert upscale("photo.png", "--scale", "2", "-o", "odd.name", "--format", "jpeg").code == 0
    with Image.open(tmp_path / "odd.name") as image:
        assert image.format == "JPEG"
    assert upscale("photo.png", "--scale", "2", "--format", "dzi").code == 0
    assert (tmp_path / "photo_x2_files").is_dir()


def test_outputs_of_one_name_are_refused_before_work_starts(upscale: Cli, tmp_path: Path) -> None:
    save(tmp_path / "a/photo.png")
    save(tmp_path / "b/photo.jpg")
    save(tmp_path / "b/Photo.png")
    ran = upscale("a/photo.png", "b/Photo.png", "--scale", "2", "-o", "out")
    assert ran.code == 2
    assert ran.err.startswith("liif: a/photo.png and b/Photo.png would both be written as Photo_x2.png in out; rename")
    assert tree(tmp_path) == ["a/photo.png", "b/Photo.png", "b/photo.jpg"]


def test_inputs_whose_names_differ_in_case_lie_beside_their_outputs(upscale: Cli, tmp_path: Path) -> None:
    save(tmp_path / "in/a.png")
    save(tmp_path / "in/A.PNG", photo(10, 12))
    if len(tree(tmp_path)) < 2:
        pytest.skip("one file on this system")
    assert upscale("in", "--scale", "2").code == 0
    assert tree(tmp_path / "in") == ["A.PNG", "A_x2.png", "a.png", "a_x2.png"]
    assert upscale("in", "--scale", "2", "-o", "out").code == 2  # which may be on another one


def test_above_a_link_is_above_what_it_leads_to(upscale: Cli, tmp_path: Path) -> None:
    save(tmp_path / "real/pic.png", photo(10, 12))
    save(tmp_path / "pic.png")
    (tmp_path / "real/below").mkdir()
    (tmp_path / "link").symlink_to("real/below")
    ran = upscale("link/../pic.png", "pic.png", "--scale", "2")
    assert (ran.code, len(ran.out.splitlines())) == (0, 2)
    assert (tmp_path / "real/pic_x2.png").exists()
    assert (tmp_path / "pic_x2.png").exists()


def test_control_characters_in_names_are_told_as_escapes(upscale: Cli, tmp_path: Path) -> None:
    name = "a\n\x1b]0;title\x07 b"
    save(tmp_path / f"in/{name}.png")
    (tmp_path / f"in/{name}c.png").write_bytes(b"no picture")
    escaped = r"a\n\x1b]0;title\x07 b"
    for arguments in (["--dry-run"], [], ["--overwrite"], ["--skip-existing"], ["--json", "--overwrite"]):
        ran = upscale("in", "--scale", "2", *arguments)
        assert ran.code == 1
        assert not set(ran.out + ran.err) & {"\x1b", "\x07"}
        assert len(ran.out.splitlines()) == (3 if "--json" in arguments else 1)  # the output, left out, too
        assert f"{escaped}c.png: is not a picture" in ran.err
    assert sorted(path.name for path in (tmp_path / "in").iterdir()) == [
        f"{name}.png",
        f"{name}_x2.png",
        f"{name}c.png",
    ]


def test_pictures_of_one_name_keep_their_endings_in_it(upscale: Cli, tmp_path: Path) -> None:
    for name in ("IMG_1.JPG", "IMG_1.webp", "IMG_2.JPG"):
        save(tmp_path / "photos" / name, photo(8, 8))
    for _ in range(2):  # nor are outputs taken for pictures
        assert upscale("photos", "--scale", "2", "--overwrite").code == 0
        made = ["IMG_1_jpg_x2.png", "IMG_1_webp_x2.png", "IMG_2_x2.png"]
        assert tree(tmp_path / "photos") == sorted(["IMG_1.JPG", "IMG_1.webp", "IMG_2.JPG", *made])


def test_json_has_one_object_a_file(upscale: Cli, tmp_path: Path) -> None:
    save(tmp_path / "a.png", photo(10, 20))
    (tmp_path / "b.png").write_text("no picture")
    ran = upscale("a.png", "b.png", "--scale", "2", "--json")
    assert ran.code == 1
    good, bad = records(ran.out)
    assert good.pop("seconds") > 0
    assert good == {
        "input": "a.png",
        "output": "a_x2.png",
        "input_size": {"width": 20, "height": 10},
        "output_size": {"width": 40, "height": 20},
        "frames": 1,
        "model": str(TINY),
        "skipped": False,
        "error": None,
        "exit_code": None,
    }
    assert (bad["output"], bad["exit_code"]) == (None, 1)
    assert bad["error"].startswith("b.png: is not a picture")
    (again, _) = records(upscale("a.png", "b.png", "--scale", "2", "--json", "--skip-existing").out)
    assert (again["skipped"], again["output"]) == (True, "a_x2.png")


def test_quiet_says_errors_only(upscale: Cli, tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    ran = upscale("a.png", "b.png", "--scale", "2", "-q")
    assert (ran.out, ran.err) == ("", "liif: b.png: no such file\n")


def test_verbose_says_what_runs_where(upscale: Cli, tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    ran = upscale("a.png", "--scale", "2", "-v", "--device", "cpu", "--precision", "float32")
    assert ran.err.startswith(f"liif: model {TINY} on cpu in float32, within ")


def test_results_come_in_the_order_of_the_inputs(upscale: Cli, tmp_path: Path) -> None:
    for number in range(8):
        if number % 3 == 1:
            (tmp_path / f"{number}.png").write_text("no picture")
        else:
            save(tmp_path / f"{number}.png", photo(8 + 8 * (number % 2), 12))
    ran = upscale(*(f"{number}.png" for number in range(8)), "--scale", "2", "--json")
    assert [record["input"] for record in records(ran.out)] == [f"{number}.png" for number in range(8)]


def test_an_animation_keeps_its_format_whatever_its_name_says(upscale: Cli, tmp_path: Path) -> None:
    frames = [Image.fromarray(photo(8, 9, seed=seed)) for seed in range(2)]
    frames[0].save(tmp_path / "film.jpg", "GIF", save_all=True, append_images=frames[1:])
    ran = upscale("film.jpg", "--scale", "2")
    assert ran.out.startswith("film_x2.gif  18x16 from 9x8, 2 frames")


def test_a_preview_writes_nothing_and_tells_the_truth(upscale: Cli, tmp_path: Path, photos: Path) -> None:
    (photos / "broken.png").write_text("no picture")
    save(photos / "b_x3.png")
    before = tree(tmp_path)
    arguments = ["photos", "-r", "--scale", "3", "-o", "out", "--json"]
    preview = upscale(*arguments, "--dry-run")
    assert tree(tmp_path) == before
    assert not (tmp_path / "out").exists()
    real = upscale(*arguments)
    assert preview.code == real.code == 1
    told = ("input", "output", "input_size", "output_size", "frames", "skipped", "error")
    assert [{key: record[key] for key in told} for record in records(preview.out)] == [
        {key: record[key] for key in told} for record in records(real.out)
    ]
    again = upscale(*arguments, "--dry-run")
    assert again.err.count("already exists") == 5
    assert again.code == 1
    skipping = records(upscale(*arguments, "--dry-run", "--skip-existing").out)
    assert [record["skipped"] for record in skipping].count(True) == 5
    ran = upscale("-", "--width", "50", "--dry-run", stdin=(photos / "a.jpg").read_bytes())
    assert ran.out == "standard output  50x38 from - 32x24\n"


def test_a_preview_refuses_what_the_run_would_refuse(upscale: Cli, tmp_path: Path) -> None:
    save(tmp_path / "photo.png", photo(20, 30))
    (tmp_path / "photo_x2_files").mkdir()
    (tmp_path / "photo_x2.png").mkdir()
    for arguments, words in ((["--format", "dzi"], "photo_x2_files already exists"), ([], "is a folder; name a file")):
        runs = [upscale("photo.png", "--scale", "2", *arguments, *more) for more in ([], ["--dry-run"])]
        assert runs[0].code == runs[1].code, runs
        assert runs[0].err == runs[1].err
        assert words in runs[0].err + runs[0].out


def test_a_preview_reads_a_pipe_once(upscale: Cli, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    save(tmp_path / "photo.png", photo(20, 30, channels=4))
    content = (tmp_path / "photo.png").read_bytes()
    writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=(content,))
    writer.start()
    ran = upscale("pipe", "--scale", "2", "--format", "jpg", "--dry-run")
    writer.join()
    assert ran.code == 5
    assert "transparen" in ran.err


def test_a_preview_reads_headers_only(upscale: Cli, tmp_path: Path) -> None:
    Image.new("RGB", (4_000, 4_000)).save(tmp_path / "large.png")
    content = (tmp_path / "large.png").read_bytes()
    (tmp_path / "large.png").write_bytes(content[:2000])  # the pixels are gone, the header is not
    ran = upscale("large.png", "--scale", "0.1", "--dry-run")
    assert ran.out == "large_x0.1.png  400x400 from large.png 4000x4000\n"


def test_skipping_by_a_name_that_tells_pixels(upscale: Cli, tmp_path: Path) -> None:
    for name in "ab":
        save(tmp_path / f"{name}.png")
    upscale("a.png", "--longest", "64")
    ran = upscale("a.png", "b.png", "--longest", "64", "--skip-existing")
    assert ran.code == 0
    assert ran.out.startswith("a_64x48.png  already exists, skipped\nb_64x48.png  64x48 from 32x24")
    assert ran.err == "liif: 2 pictures: 1 written, 1 skipped\n"


def animate(path: Path, count: int = 3, loop: int | None = 2, **options: Any) -> list[np.ndarray]:
    frames = [photo(12, 16, seed=number) for number in range(count)]
    first, *others = (Image.fromarray(frame) for frame in frames)
    looping = {} if loop is None else {"loop": loop}
    first.save(path, save_all=True, append_images=others, duration=[100, 250, 40][:count], **looping, **options)
    return frames


@pytest.mark.parametrize("extension", ["gif", "webp", "png"])
def test_animations_stay_animations(upscale: Cli, tmp_path: Path, extension: str) -> None:
    # Where something is lost, the encoder of WebP makes one frame of two that look the same.
    animate(tmp_path / f"moving.{extension}", **({"lossless": True} if extension == "webp" else {}))
    ran = upscale(f"moving.{extension}", "--scale", "2")
    assert (ran.code, ran.err) == (0, "")
    assert ", 3 frames in " in ran.out
    with Image.open(tmp_path / f"moving_x2.{extension}") as image:
        assert (image.size, image.n_frames) == ((32, 24), 3)
        durations = []
        for number in range(3):
            image.seek(number)
            image.load()
            durations.append(image.info["duration"])
        assert durations == [100, 250, 40]
        assert image.info["loop"] == 2


def test_a_moving_avif_keeps_all_its_frames(upscale: Cli, tmp_path: Path) -> None:
    frames = [Image.fromarray(frame) for frame in animate(tmp_path / "moving.png")]
    frames[0].save(tmp_path / "moving.avif", save_all=True, append_images=frames[1:], duration=[100, 250, 40])
    for extension in ("avif", "gif"):
        ran = upscale("moving.avif", "--scale", "2", "--format", extension)
        assert (ran.code, ran.err) == (0, "")
        assert ", 3 frames in " in ran.out
        with Image.open(tmp_path / f"moving_x2.{extension}") as image:
            assert (image.size, image.n_frames) == ((32, 24), 3)
            assert extension == "avif" or image.info["loop"] == 0
            image.seek(1)
            image.load()
            assert image.info["duration"] == 250


@pytest.mark.parametrize("wanted", ["gif", "webp", "png", "avif"])
def test_animations_become_another_format(upscale: Cli, tmp_path: Path, wanted: str) -> None:
    animate(tmp_path / "moving.gif", loop=0)
    assert upscale("moving.gif", "--width", "40", "--format", wanted, "-o", "out/").code == 0
    with Image.open(tmp_path / f"out/moving_40x30.{wanted}") as image:
        assert (image.size, image.n_frames) == ((40, 30), 3)


def test_every_frame_is_painted_like_a_picture_of_its_own(upscale: Cli, tmp_path: Path) -> None:
    frames = animate(tmp_path / "moving.png")
    upscale("moving.png", "--scale", "2")
    with Image.open(tmp_path / "moving_x2.png") as image:
        for number, frame in enumerate(frames):
            save(tmp_path / "frame.png", frame)
            upscale("frame.png", "--scale", "2", "--overwrite")
            image.seek(number)
            with Image.open(tmp_path / "frame_x2.png") as still:
                assert np.array_equal(np.asarray(image.convert("RGB")), np.asarray(still))


def test_a_format_that_stands_still_is_refused_for_animations(upscale: Cli, tmp_path: Path) -> None:
    animate(tmp_path / "moving.gif")
    for options in ([], ["--dry-run"]):
        ran = upscale("moving.gif", "--scale", "2", "--format", "jpg", *options)
        assert ran.code == 5
        assert ran.err == "liif: moving_x2.jpg: JPEG cannot hold an animation; use .gif, .webp, .png or .avif\n"
    assert tree(tmp_path) == ["moving.gif"]


@pytest.fixture
def suited(tmp_path: Path) -> dict[str, str]:
    """Pictures by name, and the model that suits each."""
    screen = Image.new("RGBA", (80, 60), (240, 240, 240, 255))
    pen = ImageDraw.Draw(screen)
    pen.fontmode = "1"
    pen.text((4, 4), "Preferences", "black", ImageFont.load_default_imagefont())
    pen.rectangle((4, 20, 70, 50), "navy")
    screen.save(tmp_path / "screen.png")
    for name, quality in (("fine", 95), ("coarse", 60)):
        Image.fromarray(photo(60, 80)).save(tmp_path / f"{name}.jpg", quality=quality)
    save(tmp_path / "photo.png", photo(60, 80))
    Image.fromarray(photo(60, 80)).save(tmp_path / "scan.tif", compression="jpeg", quality=60)
    Image.fromarray(photo(60, 80)).save(tmp_path / "lossy.webp", quality=80)
    Image.fromarray(photo(60, 80)).save(tmp_path / "lossless.webp", lossless=True)
    screen.convert("RGB").resize((640, 480), Image.Resampling.NEAREST).save(tmp_path / "saved.jpg", quality=97)
    return {
        "coarse.jpg": "liif-jpeg",
        "fine.jpg": "liif-light",
        "photo.png": "liif-light",
        "scan.tif": "liif-jpeg",
        "screen.png": "liif-drawn",
        "lossy.webp": "liif-jpeg",
        "lossless.webp": "liif-light",
        "saved.jpg": "liif-jpeg",
    }


def test_each_picture_gets_the_model_that_suits_it(cli: Cli, suited: dict[str, str]) -> None:
    said = records(cli("upscale", *suited, "--scale", "2", "--json").out)
    assert [each["model"] for each in said] == list(suited.values())
    for name, model in suited.items():
        by_itself = cli("upscale", name, "--scale", "2", "--overwrite")
        assert re.search(rf" from \d+x\d+ by {model} in ", by_itself.out)
        chosen = Path(f"{Path(name).stem}_x2.png").read_bytes()
        output = Path(f"{Path(name).stem}_x2.png")
        output.unlink()
        assert " by " not in cli("upscale", name, "--scale", "2", "-m", model).out
        assert output.read_bytes() == chosen

    def painted(model: str) -> bytes:
        cli("upscale", "coarse.jpg", "--scale", "2", "-m", model, "--overwrite")
        return Path("coarse_x2.png").read_bytes()

    assert painted("auto") != painted("default") == painted("liif-light")
    (said,) = records(cli("upscale", "photo.png", "--scale", "3", "-m", "default", "--json").out)
    assert said["model"] == "liif-light"  # an alias may mean another one some day


@pytest.mark.parametrize(
    ("size", "asked"),
    [
        (["--scale", "0.5"], False),
        (["--scale", "0.5", "--direct"], False),
        (["--scale", "1"], False),
        (["--scale", "1", "--direct"], True),
        (["--scale", "2", "--box", "0,0,40,30"], True),  # as large as the picture
        (["--scale", "3", "--box", "10,10,20,20"], True),  # and smaller, yet enlarged
        (["--scale", "1", "--box", "0,0,40,30"], False),
        (["--size", "100x30"], True),
    ],
)
def test_a_model_is_named_where_one_was_asked(cli: Cli, suited: dict[str, str], size: list[str], asked: bool) -> None:
    by_itself = cli("upscale", "screen.png", *size)
    assert (by_itself.code, by_itself.err, " by liif-drawn in " in by_itself.out) == (0, "", asked)
    (said,) = records(cli("upscale", "screen.png", *size, "--json", "--overwrite").out)
    assert said["model"] == ("liif-drawn" if asked else None)
    (skipped,) = records(cli("upscale", "screen.png", *size, "--json", "--skip-existing").out)
    assert (skipped["skipped"], skipped["model"]) == (True, "auto")
    named = cli("upscale", "screen.png", *size, "-m", "default", "--overwrite")
    assert named.code == 0
    assert ("so the model was not asked" in named.err) is (size == ["--scale", "1"])


def test_all_frames_are_painted_by_the_model_that_suits_one_in_the_middle(cli: Cli, tmp_path: Path) -> None:
    blank, drawn = Image.new("RGB", (40, 40), "white"), Image.new("RGB", (40, 40), "white")
    ImageDraw.Draw(drawn).rectangle((5, 5, 30, 20), "navy")
    last = Image.fromarray(photo(40, 40))
    blank.save(tmp_path / "moving.png", save_all=True, append_images=[drawn, last])
    last.save(tmp_path / "last.png")
    assert " by liif-drawn in " in cli("upscale", "moving.png", "--scale", "2").out
    cli("upscale", "last.png", "--scale", "2", "-m", "liif-drawn")
    with Image.open("moving_x2.png") as moving, Image.open("last_x2.png") as still:
        moving.seek(2)
        assert np.array_equal(np.asarray(moving.convert("RGB")), np.asarray(still))


def test_what_phones_take_is_a_jpeg_file_by_whatever_way_it_comes(cli: Cli, tmp_path: Path) -> None:
    first, second = (Image.fromarray(photo(24, 32)).resize(size) for size in ((32, 24), (16, 12)))
    first.save(tmp_path / "phone.jpg", "MPO", save_all=True, append_images=[second], quality=70)
    assert " by liif-jpeg in " in cli("upscale", "phone.jpg", "--scale", "2").out
    with Image.open("phone.jpg") as opened, Image.open("phone_x2.png") as painted:
        assert opened.format == "MPO"
        assert np.array_equal(np.asarray(liif_cli.load(device="cpu").upscale(opened, 2)), np.asarray(painted))


def test_from_python_each_picture_gets_the_same_model(cli: Cli, suited: dict[str, str]) -> None:
    cli("upscale", *suited, "--scale", "2")
    model = liif_cli.load(device="cpu")
    for name in suited:
        if name == "lossless.webp":  # Pillow does not tell
            continue
        with Image.open(name) as opened, Image.open(f"{Path(name).stem}_x2.png") as painted:
            assert np.array_equal(np.asarray(model.upscale(opened, 2)), np.asarray(painted))


def test_a_model_that_cannot_be_loaded_fails_the_pictures_it_suits(
    cli: Cli, suited: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = weights.resolve
    monkeypatch.setattr(weights, "resolve", lambda name: found("gone.safetensors" if name == "liif-drawn" else name))
    ran = cli("upscale", *suited, "--scale", "2")
    assert ran.code == 1
    assert ran.err.startswith("liif: screen.png: gone.safetensors: no such model file")
    assert len(ran.out.splitlines()) == len(suited) - 1
    assert cli("upscale", "screen.png", "--scale", "2").code == 3


def test_a_model_is_asked_at_the_picture_s_own_size_where_that_is_wanted(upscale: Cli, tmp_path: Path) -> None:
    save(tmp_path / "photo.png")
    go = functools.partial(upscale, "photo.png", "--scale", "1", "--overwrite")
    ran = go()
    assert (
        ran.err
        == "liif: nothing was to be enlarged, so the model was not asked; add --direct to have it paint anyway\n"
    )
    assert np.array_equal(np.asarray(Image.open(tmp_path / "photo_x1.png")), photo())
    assert go("--direct").err == ""
    painted = np.asarray(Image.open(tmp_path / "photo_x1.png"))
    assert painted.shape == photo().shape
    assert not np.array_equal(painted, photo())


def test_folders_in_folders_that_are_not_looked_into_are_named(upscale: Cli, tmp_path: Path) -> None:
    for name in ("photos/a.png", "photos/deep/b.png", "photos/out/c.png"):
        save(tmp_path / name)
    said = "liif: not looked into: photos/deep; add -r for folders in folders\n"
    assert upscale("photos", "--scale", "2", "-o", "photos/out/").err == said
    assert upscale("photos", "-r", "--scale", "2", "-o", "photos/out/", "--overwrite").err.count("looked into") == 0


def test_animations_through_pipes_keep_their_format(upscale: Cli, tmp_path: Path) -> None:
    animate(tmp_path / "moving.gif")
    ran = upscale("-", "--scale", "2", stdin=(tmp_path / "moving.gif").read_bytes())
    with Image.open(io.BytesIO(ran.raw)) as image:
        assert (image.format, image.n_frames) == ("GIF", 3)


def test_animations_too_large_to_be_held_are_refused(upscale: Cli, tmp_path: Path) -> None:
    animate(tmp_path / "moving.gif")
    ran = upscale("moving.gif", "--size", "30000x30000", "--memory", "3G", "--format", "png")
    assert ran.code in (4, 5)  # whichever of memory and disk is too small for it first
    assert len(ran.err.splitlines()) == 1


def test_tiles_of_an_earlier_run_are_no_inputs(upscale: Cli, tmp_path: Path) -> None:
    save(tmp_path / "photos/in/a.png", photo(20, 30))
    arguments = ["photos", "-r", "--scale", "2", "--format", "deepzoom", "--skip-existing"]
    assert upscale(*arguments).code == 0
    assert (tmp_path / "photos/in/a_x2.dzi").is_file()
    before = tree(tmp_path)
    assert any(name.startswith("photos/in/a_x2_files/") for name in before)
    for names in (["photos"], ["photos/*"], ["photos/**"], ["photos/in/a.png", "photos/in/a_x2_files"]):
        assert upscale(*names, *arguments[1:]).code == 0
        assert tree(tmp_path) == before


def test_a_named_picture_is_an_output_only_where_it_has_the_name_of_one(upscale: Cli, tmp_path: Path) -> None:
    for name in ("beach.png", "beach_1920x1080.jpg", "beach_x3.png"):
        save(tmp_path / name, photo(8, 8))
    assert upscale("beach.png", "beach_1920x1080.jpg", "beach_x3.png", "--scale", "2").code == 0
    made = ["beach.png", "beach_1920x1080.jpg", "beach_1920x1080_x2.png", "beach_x2.png", "beach_x3.png"]
    assert tree(tmp_path) == made


def test_a_picture_that_ends_before_it_begins_does_not_end_the_batch(upscale: Cli, tmp_path: Path) -> None:
    for length in (12, 16, 20):
        (tmp_path / f"{length}.webp").write_bytes(b"RIFF\x00\x01\x00\x00WEBPVP8X\x0a\x00\x00\x00"[:length])
    save(tmp_path / "good.webp", photo(8, 8))
    ran = upscale("12.webp", "16.webp", "20.webp", "good.webp", "--scale", "2")
    assert ran.code == 1
    assert "Traceback" not in ran.err
    assert (tmp_path / "good_x2.png").is_file()


def test_outputs_of_another_format_are_no_inputs_and_scripts_are_told(upscale: Cli, photos: Path) -> None:
    assert upscale("photos", "--scale", "2", "--format", "jpg").code == 0
    for arguments in (["--dry-run"], []):
        ran = upscale("photos", "--scale", "2", "--json", *arguments)
        assert ran.code == 0
        told = {record["input"]: record for record in records(ran.out)}
        assert sorted(told) == ["photos/a.jpg", "photos/a_x2.jpg", "photos/b.PNG", "photos/b_x2.jpg"]
        assert [name for name, record in told.items() if record["skipped"]] == ["photos/a_x2.jpg", "photos/b_x2.jpg"]
        assert told["photos/a_x2.jpg"]["output"] is None


@pytest.mark.parametrize(
    ("encoding", "mark"), [("utf-8", b"\xef\xbb\xbf"), ("utf-16-le", b"\xff\xfe"), ("utf-16-be", b"\xfe\xff")]
)
def test_lists_that_windows_wrote_are_read(upscale: Cli, tmp_path: Path, encoding: str, mark: bytes) -> None:
    save(tmp_path / "größe.png", photo(8, 8))
    save(tmp_path / "b.png", photo(8, 8))
    (tmp_path / "list.txt").write_bytes(mark + "größe.png\r\nb.png\r\n".encode(encoding))
    ran = upscale("--files-from", "list.txt", "--scale", "2")
    assert ran.code == 0, ran.err
    assert {"größe_x2.png", "b_x2.png"} <= set(tree(tmp_path))


def test_still_pictures_are_not_opened_to_name_their_outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow reads a WebP or AVIF file to its end where it is opened."""
    still = [save(tmp_path / "a.webp"), save(tmp_path / "b.avif")]
    frames = [Image.fromarray(photo(seed=seed)) for seed in range(2)]
    moving = [tmp_path / name for name in ("c.webp", "d.avif", "e.gif", "f.png")]
    for path in moving:
        frames[0].save(path, save_all=True, append_images=frames[1:])
    opened = []

    def header(path: Path, **options: Any) -> Any:
        opened.append(path)
        return read_header(path, **options)

    monkeypatch.setattr(jobs, "read_header", header)
    options = jobs.Options(sizing=Sizing(scale=2))
    plan = jobs.plan_jobs([jobs.Source(path) for path in (*still, *moving)], options)
    assert opened == moving
    assert [job.extension for job in plan.jobs] == [".png", ".png", ".webp", ".avif", ".gif", ".png"]


@pytest.mark.parametrize("extension", ["png", "jpg", "tif"])
def test_what_a_photograph_carries_comes_along_unless_it_is_stripped(
    upscale: Cli, tmp_path: Path, extension: str
) -> None:
    icc = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    iptc = b"\x1c\x02\x78\x00\x09A caption"
    source = replace(from_array(photo(20, 30)), icc=icc, xmp=b"<x:xmpmeta/>", iptc=iptc, dpi=(300.0, 300.0))
    exif = Image.Exif()
    exif[0x010F] = "A maker"
    write(tmp_path / "photo.jpg", source.pixels, replace(source, exif=exif.tobytes()))
    options = ["--scale", "2", "--format", extension, "--overwrite"]
    assert upscale("photo.jpg", *options).code == 0
    kept = read(tmp_path / f"photo_x2.{extension}")
    assert (kept.icc, kept.xmp, kept.iptc, kept.dpi) == (icc, b"<x:xmpmeta/>", iptc, (300.0, 300.0))
    assert b"A maker" in (kept.exif or b"")
    assert upscale("photo.jpg", *options, "--strip").code == 0
    bare = read(tmp_path / f"photo_x2.{extension}")
    assert (bare.icc, bare.exif, bare.xmp, bare.iptc) == (icc, None, None, None)
    assert np.array_equal(bare.pixels, kept.pixels)


def test_direct_asks_the_network_for_every_pixel(upscale: Cli, tmp_path: Path) -> None:
    pixels = photo(9, 12)
    save(tmp_path / "photo.png", pixels)
    options = ["photo.png", "--scale", "8", "--precision", "float32", "--device", "cpu"]
    assert upscale(*options, "-o", "far.png").code == 0
    assert upscale(*options, "-o", "direct.png", "--direct").code == 0
    far, direct = (np.asarray(Image.open(tmp_path / f"{name}.png")).astype(int) for name in ("far", "direct"))
    engine = Engine(checkpoint.load(TINY), torch.device("cpu"), torch.float32, 2**30)
    painted = joined(engine.bands(pixels, (72, 96)), 72)
    assert np.abs(direct - np.clip(painted, 0, 1) * 255).max() <= 0.51
    assert np.abs(direct - far).max() > 1


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is Linux's to tell")
def test_memory_limits_the_whole_process(tmp_path: Path) -> None:
    save(tmp_path / "photo.png", photo(500, 500))
    program = (
        "import re, sys, pathlib\nfrom liif_cli.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "finally: print(re.search(r'VmHWM:\\s+(\\d+)', pathlib.Path('/proc/self/status').read_text())[1])"
    )
    line = [
        "upscale",
        tmp_path / "photo.png",
        "--scale",
        "12",
        "-m",
        TINY,
        "--memory",
        "600M",
        "-o",
        tmp_path / "a.png",
    ]
    ran = subprocess.run([sys.executable, "-c", program, *map(str, line)], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert int(ran.stdout.splitlines()[-1]) * 1024 <= 600 * 2**20  # the output alone, as it is read, is 108 MB
    with Image.open(tmp_path / "a.png") as image:
        assert image.size == (6000, 6000)
