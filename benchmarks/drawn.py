"""How well what a computer drew is told from photographs: the figures behind liif_cli/images/drawn.py.

    python benchmarks/drawn.py --photos DIR --drawn DIR        some minutes for hundreds of pictures

Every picture is looked at as it is and after lossy compression, photographs also at a third of their size. The table
has the picture of each kind that comes nearest to the other; names follow of those taken for the other kind.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from liif_cli.images import Picture, from_pil, looks_drawn
from liif_cli.images.drawn import LEAST_EDGES_SHARE, look_at

# Not of WebP and AVIF: what was compressed by them is painted by liif-jpeg, whatever it shows.
INPUTS: list[tuple[str, int]] = [("PNG", 0), ("GIF", 0), ("JPEG", 98), ("JPEG", 95)]


def images(folder: Path, scales: tuple[int, ...]) -> Iterator[tuple[str, Image.Image]]:
    """The pictures of a folder and the folders in it, on white where they are transparent."""
    for path in sorted(
        path for path in folder.rglob("*") if path.suffix.lower() in (".png", ".jpg", ".jpeg", ".webp", ".avif")
    ):
        with Image.open(path) as opened:
            image = opened.convert("RGBA")
        ground = Image.new("RGBA", image.size, "white")
        ground.alpha_composite(image)
        for scale in scales:
            if min(image.size) >= 32 * scale:
                yield f"{path.name} / {scale}", ground.convert("RGB").reduce(scale)


def through(image: Image.Image, file_format: str, quality: int) -> Picture:
    """The picture that a file of the image is."""
    image.save(file := io.BytesIO(), file_format, **({"quality": quality} if quality else {}))
    return from_pil(Image.open(file))


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description="How well drawn pictures are told from photographs.")
    parser.add_argument("--photos", type=Path, nargs="+", required=True, help="folders of photographs")
    parser.add_argument("--drawn", type=Path, nargs="+", required=True, help="folders of screenshots, charts, line art")
    asked = parser.parse_args()
    kinds = (("photographs", asked.photos, (1, 3)), ("drawn", asked.drawn, (1,)))
    print("| file | kind | pictures | look drawn | hard | equal x abrupt |")
    print("|---|---|---|---|---|---|")
    wrong: dict[str, list[str]] = {}
    for file_format, quality in INPUTS:
        for kind, folders, scales in kinds:
            looks, drawn = [], 0
            for name, image in (each for folder in folders for each in images(folder, scales)):
                picture = through(image, file_format, quality)
                looks.append(look_at(picture))
                is_drawn = looks_drawn(picture)
                drawn += is_drawn
                if is_drawn != (kind == "drawn"):
                    wrong.setdefault(f"{kind}: {name}", []).append(f"{file_format} {quality or ''}".strip())
            nearest = max if kind == "photographs" else min
            hard = nearest((look.hard for look in looks if look.edges_share >= LEAST_EDGES_SHARE), default=float("nan"))
            screen = nearest((look.equal * look.abrupt for look in looks), default=float("nan"))
            cells = f"{len(looks)} | {drawn} | {hard:.3f} | {screen:.3f}"
            print(f"| {file_format} {quality or ''} | {kind} | {cells} |", flush=True)
    for name, formats in wrong.items():
        print(f"{name}: {', '.join(formats)}")


if __name__ == "__main__":
    main()
