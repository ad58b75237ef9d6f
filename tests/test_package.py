"""What is built can be installed anywhere, and works there at once."""

import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
from PIL import Image

from liif_cli import __version__
from liif_cli.weights.registry import registry

ROOT = Path(__file__).resolve().parents[1]

# In the empty environment any attempt to reach the network ends the test.
NO_NETWORK = """
import socket
def refuse(*_):
    raise SystemExit("this needs no network")
socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = refuse
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution, and the wheel built from it."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return folder


@pytest.fixture(scope="module")
def python(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment that has this wheel, and libraries from here in place of downloads."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=True)
    paths = {"base": str(folder), "platbase": str(folder)}
    found = Path(sysconfig.get_path("scripts", "venv", vars=paths)) / Path(sys.executable).name
    (wheel,) = built.glob("*.whl")
    pip = [sys.executable, "-m", "pip", "--python", str(found), "install", "--no-index", "--no-deps", "--quiet"]
    subprocess.run([*pip, "--disable-pip-version-check", str(wheel)], check=True)
    packages = Path(sysconfig.get_path("purelib", "venv", vars=paths))
    # A folder named in a .pth file comes after the environment's own, and its own .pth files are not read: the wheel is
    # found, not the checkout.
    (packages / "libraries.pth").write_text(sysconfig.get_path("purelib"))
    (packages / "sitecustomize.py").write_text(NO_NETWORK)
    return found


def run(python: Path, cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {"HOME": str(cwd / "home"), "LIIF_CACHE": str(cwd / "cache"), "SYSTEMROOT": r"C:\Windows"}
    command = [str(python), *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def test_the_guard_against_the_network_guards(python: Path, tmp_path: Path) -> None:
    ran = run(python, tmp_path, "-c", "import socket; socket.create_connection(('127.0.0.1', 9))")
    assert (ran.returncode, ran.stderr) == (1, "this needs no network\n")


def test_the_wheel_carries_the_models_and_nothing_of_the_tests(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        inside = set(archive.namelist())
        metadata = Parser().parsestr(archive.read(f"liif-{__version__}.dist-info/METADATA").decode())
    assert {f"liif_cli/bundled/{name}" for name in ("registry.toml", "README.md")} <= inside
    for entry in registry().entries.values():
        assert (f"liif_cli/bundled/{entry.file.name}" in inside) is entry.bundled
    assert {"liif_cli/py.typed", f"liif-{__version__}.dist-info/licenses/THIRD_PARTY.md"} <= inside
    assert {name.split("/")[0] for name in inside} == {"liif_cli", f"liif-{__version__}.dist-info"}
    assert set(metadata.get_all("Provides-Extra", [])) >= {"eval", "heic", "train"}
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["License-Expression"] == "MIT"


def test_the_source_distribution_can_build_and_test(built: Path) -> None:
    (source,) = built.glob("*.tar.gz")
    with tarfile.open(source) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    assert {"pyproject.toml", "LICENSE", "THIRD_PARTY.md", "weights/registry.toml", "tests/test_package.py"} <= inside


def test_the_installed_program_is_found_and_says_its_version(python: Path, tmp_path: Path) -> None:
    ran = run(python, tmp_path, "-m", "liif_cli", "--version")
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, f"liif {__version__}\n", "")
    where = run(python, tmp_path, "-c", "import liif_cli; print(liif_cli.__file__)").stdout
    assert Path(where.strip()).is_relative_to(python.parents[1])


def test_every_bundled_model_is_whole_where_it_is_installed(python: Path, tmp_path: Path) -> None:
    ran = run(python, tmp_path, "-m", "liif_cli", "fetch-weights", "--verify")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "liif-light: as recorded" in ran.stdout
    assert "bundled" in run(python, tmp_path, "-m", "liif_cli", "fetch-weights", "--list", "liif-light").stdout


def test_a_picture_is_upscaled_in_an_empty_folder_without_network(python: Path, tmp_path: Path) -> None:
    Image.linear_gradient("L").resize((30, 20)).convert("RGB").save(tmp_path / "in.png")
    liif = python.with_name("liif" + python.suffix)
    ran = run(liif, tmp_path, "upscale", "in.png", "--scale", "2.7")
    assert ran.returncode == 0, ran.stderr
    with Image.open(tmp_path / "in_x2.7.png") as picture:
        assert picture.size == (81, 54)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.png", "in_x2.7.png"]
