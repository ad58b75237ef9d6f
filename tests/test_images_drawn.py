"""What a computer drew is told from photographs."""

import io

import numpy as np
import pytest
import skimage.data
from PIL import Image, ImageDraw, ImageFont

from liif_cli.images import Picture, from_array, from_pil, looks_drawn


def letters(*, smoothed: bool, colours: tuple[str, str] = ("black", "white")) -> Image.Image:
    image = Image.new("RGB", (300, 120), colours[1])
    pen = ImageDraw.Draw(image)
    font = ImageFont.load_default(13) if smoothed else ImageFont.load_default_imagefont()
    for row in range(5):
        pen.text((8, 6 + 20 * row), "def enlarge(picture): return it", colours[0], font)
    return image


def chart() -> Image.Image:
    image = Image.new("RGB", (300, 200), (250, 250, 245))
    pen = ImageDraw.Draw(image)
    for column, height in enumerate((30, 90, 60, 120)):
        pen.rectangle((30 + 60 * column, 180 - height, 70 + 60 * column, 180), (40, 90, 40 * column))
    pen.line((20, 10, 20, 180, 290, 180), "black")
    return image


def cut_out(ground: int, alpha: int) -> Picture:
    """A head on an even ground, where it may be transparent."""
    photo = skimage.data.astronaut()
    rows, columns = np.ogrid[:512, :512]
    outside = (rows - 120) ** 2 + (columns - 220) ** 2 > 90**2
    pixels = np.dstack([photo, np.full((512, 512), 255, np.uint8)])
    pixels[outside] = (ground, ground, ground, alpha)
    return from_array(pixels)


@pytest.mark.parametrize("name", ["astronaut", "camera", "chelsea", "coffee", "moon", "rocket", "page"])
def test_photographs_do_not_look_drawn(name: str) -> None:
    photo = getattr(skimage.data, name)()
    for scale in (1, 3):
        image = Image.fromarray(photo).reduce(scale)
        assert not looks_drawn(from_pil(image))
        for file_format, quality in (("JPEG", 95), ("JPEG", 60), ("GIF", 0)):
            assert not looks_drawn(saved(image, file_format, quality))
    assert not looks_drawn(from_array(photo.astype(np.uint16) * 257))
    assert not looks_drawn(from_array(photo / 255))
    if photo.ndim == 3:  # dithered greys are dots of six shades
        assert not looks_drawn(from_pil(Image.fromarray(photo).convert("P", palette=Image.Palette.WEB)))


@pytest.mark.parametrize(("ground", "alpha"), [(255, 255), (0, 255), (255, 0), (0, 0)])
def test_nor_do_those_cut_out_of_their_ground(ground: int, alpha: int) -> None:
    assert not looks_drawn(cut_out(ground, alpha))


@pytest.mark.parametrize(
    "image",
    [letters(smoothed=False), letters(smoothed=True), letters(smoothed=True, colours=("white", "navy")), chart()],
)
def test_what_a_computer_draws_does(image: Image.Image) -> None:
    pixels = np.asarray(image)
    assert looks_drawn(from_array(pixels))
    assert looks_drawn(from_array(pixels.astype(np.uint16) * 257))
    assert looks_drawn(from_array(pixels / 255))
    assert looks_drawn(from_array(pixels[..., 1]))
    assert looks_drawn(from_array(np.dstack([pixels, 255 * (pixels[..., 0] < 200).astype(np.uint8)])))
    assert not looks_drawn(from_array(pixels[:, :3]))  # too little to tell


def test_lines_of_text_in_step_with_the_rows_are_seen() -> None:
    """A large screen, of which not every row is looked at."""
    for phase in range(0, 32, 5):
        screen = Image.new("RGB", (2560, 1440), "white")
        pen = ImageDraw.Draw(screen)
        for top in range(phase, 1440, 32):
            pen.text((8, top), "def enlarge(picture): return it" * 3, "black", ImageFont.load_default(10))
        assert looks_drawn(from_pil(screen))


def test_so_it_does_after_jpeg_and_webp() -> None:
    for image in (letters(smoothed=True), letters(smoothed=False), chart()):
        for quality in (95, 98):
            assert looks_drawn(saved(image, "JPEG", quality))
    image = letters(smoothed=True).resize((900, 360), Image.Resampling.NEAREST)
    for file_format, quality in (("JPEG", 95), ("WEBP", 80)):
        picture = saved(image, file_format, quality)
        assert looks_drawn(picture)
        assert not picture.lossless


def saved(image: Image.Image, file_format: str, quality: int) -> Picture:
    image.save(file := io.BytesIO(), file_format, **({"quality": quality} if quality else {}))
    return from_pil(Image.open(file))
