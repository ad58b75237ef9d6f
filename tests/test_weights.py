"""A name leads to the right file, or one line says why not; the registry is typed and closed."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from liif_cli import weights
from liif_cli.errors import ModelError
from liif_cli.weights.cache import Place, Record, bundled_path, cache_folder, read_record, sha256_of, write_record
from liif_cli.weights.registry import is_name, parse

MODEL = """
[aliases]
default = "small"

[models.small]
summary = "a model"
network = "LIIF"
parameters = 7
licence = "MIT"
licence_note = ""
source = "here"
training_data = "photographs"
scored = "PSNR, measured"
scores = { Set5 = { x2 = 37.5 } }

[models.small.file]
name = "small.pth"
bytes = 10
sha256 = "0000000000000000000000000000000000000000000000000000000000000000"
confirmed = false
mirrors = ["https://example.org/small.pth"]
"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("LIIF_CACHE", str(folder))
    monkeypatch.chdir(tmp_path)
    return folder


def put(cache: Path, name: str, content: bytes = b"a model") -> Place:
    """A model with its record, as fetching leaves them."""
    place = Place(cache, name)
    cache.mkdir(exist_ok=True)
    place.model.write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    write_record(place, Record(name, "https://example.org/a.pth", "0" * 64, "liif", 7, len(content), digest))
    return place


def test_the_default_is_bundled_and_as_recorded() -> None:
    entry = weights.registry().find("default")
    assert entry is not None
    assert entry.bundled
    path = weights.resolve("default")
    assert path == weights.resolve(entry.name) == bundled_path(entry)
    assert path.stat().st_size == entry.file.bytes
    assert sha256_of(path) == entry.file.sha256


def test_the_default_is_a_model_and_says_how_it_was_made() -> None:
    from liif_cli import checkpoint

    found = checkpoint.read(weights.resolve("default"))
    model = checkpoint.restore(found, "default")
    entry = weights.find("default")
    assert sum(tensor.numel() for tensor in model.state_dict().values()) == entry.parameters
    assert found.facts["scores"] == {data_set: dict(row) for data_set, row in entry.scores.items()}
    assert found.facts["licence"] == entry.licence
    assert {"training_data", "training_data_licences", "recipe", "iterations"} <= found.facts.keys()


def test_the_official_models_are_known_with_https_mirrors_and_an_unconfirmed_checksum() -> None:
    for name in ("edsr-baseline-liif", "rdn-liif"):
        entry = weights.find(name)
        assert not entry.bundled
        assert not entry.file.confirmed
        assert entry.licence == "BSD-3-Clause"
        assert [url.split("/")[2] for url in entry.file.mirrors] == ["www.dropbox.com", "drive.usercontent.google.com"]


def test_every_bundled_model_stands_on_the_card() -> None:
    card = bundled_path(weights.find("default")).with_name("README.md").read_text(encoding="utf-8")
    for entry in weights.registry().entries.values():
        if entry.bundled:
            section = card.partition(f"## `{entry.name}`\n")[2].partition("\n## ")[0]
            for row in entry.scores.values():
                assert all(f"{score:.2f}" in section for score in row.values()), entry.name


def test_resolving_and_listing_do_not_import_torch_or_requests() -> None:
    code = (
        "import sys; from liif_cli import weights; from liif_cli.weights.listing import look;"
        " weights.resolve('default'); look([], weights.cache_folder());"
        " sys.exit(bool({'torch', 'requests'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_model_that_is_not_here_is_not_downloaded_but_named_with_its_command(cache: Path) -> None:
    with pytest.raises(ModelError, match=r"fetch it with: liif fetch-weights rdn-liif$") as caught:
        weights.resolve("rdn-liif")
    assert caught.value.exit_code == 3
    assert not cache.exists()


def test_a_cached_model_is_found_by_name(cache: Path) -> None:
    for name in ("rdn-liif", "mine"):
        place = put(cache, name)
        assert weights.resolve(name) == place.model
    assert weights.known_names()[-1] == "mine"


@pytest.mark.parametrize("name", ["rdn-liif", "mine"])
def test_a_cached_model_of_another_size_is_refused(cache: Path, name: str) -> None:
    put(cache, name).model.write_bytes(b"cut")
    with pytest.raises(ModelError, match=r"damaged: 3 bytes, not 7.*liif fetch-weights"):
        weights.resolve(name)


def test_a_model_without_its_record_is_not_there(cache: Path) -> None:
    put(cache, "rdn-liif").record.unlink()
    with pytest.raises(ModelError, match="not on this machine"):
        weights.resolve("rdn-liif")


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"name": "mine", "surprise": 1}'])
def test_a_damaged_record_is_one_line(cache: Path, content: str) -> None:
    put(cache, "mine").record.write_text(content)
    with pytest.raises(ModelError, match=r"mine\.json"):
        weights.resolve("mine")


def test_a_record_under_another_name_is_refused(cache: Path) -> None:
    place = put(cache, "mine")
    place.record.write_text(json.dumps({**json.loads(place.record.read_text()), "name": "other"}))
    with pytest.raises(ModelError, match="not the record of mine"):
        read_record(place)


def test_a_path_is_taken_as_it_is_and_a_name_comes_first(tmp_path: Path) -> None:
    file, run = tmp_path / "a.pth", tmp_path / "run"
    file.touch()
    run.mkdir()
    (tmp_path / "default").touch()
    assert weights.resolve(str(file)) == file
    assert weights.resolve("run") == Path("run")
    assert weights.resolve("default").name == "liif-light.safetensors"
    assert weights.resolve("./default") == Path("default")
    assert weights.resolve(Path("default")) == Path("default")


@pytest.mark.parametrize("text", ["no/such", "gone.pth", "gone.safetensors"])
def test_a_missing_path_is_called_a_path(text: str) -> None:
    with pytest.raises(ModelError, match="no such model file"):
        weights.resolve(text)


@pytest.mark.parametrize(("text", "meant"), [("rdn-lif", "did you mean rdn-liif"), ("EDSR-baseline-LIIF", "edsr-base")])
def test_an_unknown_name_is_answered_with_those_that_come_close(text: str, meant: str) -> None:
    with pytest.raises(ModelError, match=meant) as caught:
        weights.resolve(text)
    assert "default, liif-light, liif-base, liif-jpeg, liif-drawn, edsr-baseline-liif, rdn-liif" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_auto_is_no_model_by_itself() -> None:
    with pytest.raises(ModelError, match="auto: only upscaling chooses a model by the picture; name one"):
        weights.resolve("auto")
    with pytest.raises(ModelError, match="did you mean auto"):
        weights.resolve("Auto")


@pytest.mark.parametrize("text", ["", " ", "\0", "a" * 5000, "café"])
def test_any_text_gets_one_line(text: str) -> None:
    with pytest.raises(ModelError):
        weights.resolve(text)


def test_the_cache_is_the_platforms_unless_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIIF_CACHE", "~/models")
    assert cache_folder() == Path.home() / "models"
    monkeypatch.setenv("LIIF_CACHE", "")
    assert cache_folder().name in ("liif", "Cache")


def test_a_registry_reads_as_written() -> None:
    known = parse(MODEL, "here")
    entry = known.find("default")
    assert entry is not None
    assert entry is known.entries["small"]
    assert entry.scores["Set5"]["x2"] == 37.5
    assert entry.file.mirrors == ("https://example.org/small.pth",)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("summary =", "sumary =", "models.small: unknown key 'sumary'"),
        ("parameters = 7", "", "models.small: parameters is missing"),
        ("parameters = 7", 'parameters = "7"', "parameters = '7' must be of type int"),
        ("parameters = 7", "parameters = true", "must be of type int"),
        ("confirmed = false", "confirmed = 0", "must be of type bool"),
        ("[aliases]", "[alias]", "unknown table 'alias'"),
        ('default = "small"', 'default = "large"', "alias 'default'"),
        ('default = "small"', 'small = "small"', "alias 'small'"),
        ("https://", "http://", "not https"),
        ('["https', '"https', "not TOML"),
        ('["https://example.org/small.pth"]', '"https://a"', "mirrors must be a list"),
        ('"small.pth"', '"../small.pth"', "a plain name"),
        ("0000", "000g", "64 small hexadecimal digits"),
        ("bytes = 10", "bytes = 0", "needs a plain name, a size"),
        ("models.small", 'models."../a"', "small letters"),
        ("37.5", '"37.5"', "scores.Set5: expected numbers"),
    ],
)
def test_a_registry_with_a_mistake_names_its_place(old: str, new: str, message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        parse(MODEL.replace(old, new), "registry.toml")
    assert str(caught.value).startswith("registry.toml: ")


@pytest.mark.parametrize("name", ["a", "mine", "liif-2.1", "a_b", "0", "a" * 64])
def test_names_of_models(name: str) -> None:
    assert is_name(name)


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../a", "a/b", "a\\b", "Mine", "-a", "a.", "é", "a b", "con", "nul.x", "a" * 65, "a\n"]
)
def test_no_names_of_models(name: str) -> None:
    assert not is_name(name)
