"""Moving pictures: GIF, WebP, APNG and AVIF files to whole frames and back."""

import io
import itertools
import struct
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, PngImagePlugin

from liif_cli.errors import InputError, OutputError
from liif_cli.files import atomic_path, cannot_write
from liif_cli.images.fit import eight_bits
from liif_cli.images.formats import Format, check_output, format_of, is_kept_lossless
from liif_cli.images.gif import Part, parts, save_gif
from liif_cli.images.header import ANIMATED
from liif_cli.images.picture import Array, Picture, full_scale
from liif_cli.images.pillow import as_channels, in_srgb, picture_of
from liif_cli.images.quiet import quiet
from liif_cli.images.read import (
    DEFAULT_MAX_PIXELS,
    Opened,
    Source,
    check_pixels,
    decoding,
    is_lossless_webp,
    is_tiff,
    opened,
    recognise,
)
from liif_cli.images.write import AVIF_QUALITY, PNG_LEVEL, WEBP_QUALITY, beside, carried

# What browsers show a frame for that says 0 to 10 ms: older files mean "as fast as possible", which nobody wants to
# see.
_TOO_SHORT_MS = 10
_DEFAULT_MS = 100
_MOST_PLAYS = 0xFFFF

MOVING = ("GIF", "WebP", "PNG", "AVIF")
"""The formats that hold animations."""


@dataclass(frozen=True, eq=False)
class Animation:
    """Frames of one size and one number of channels, each the whole canvas; never empty.

    `durations_ms` has one entry a frame. `plays` is how often, 0 for ever.
    """

    frames: tuple[Picture, ...]
    durations_ms: tuple[int, ...]
    plays: int
    format: str


def read_animation(source: Source, *, max_pixels: int | None = DEFAULT_MAX_PIXELS) -> Animation | None:
    """Return the frames of an animated GIF, WebP, PNG or AVIF file, or None where the file holds one picture only.

    Frames are RGB, or RGBA where any of them is transparent. `max_pixels` limits all frames together. Raises InputError
    as `read` does.
    """
    with opened(source) as file, quiet():
        if is_tiff(file):
            return None
        with recognise(file) as image, decoding(file.name):
            if image.format not in ANIMATED:
                return None
            count = int(getattr(image, "n_frames", 1))
            # The still picture of an APNG file may stand for the animation where that cannot be shown.
            first = 1 if image.info.get("default_image") else 0
            if count - first < 2:
                return None
            check_pixels(file.name, image.size[0] * image.size[1] * (count - first), max_pixels)
            frames: list[Picture] = []
            durations: list[Any] = []
            canvas = np.zeros((image.size[1], image.size[0], 4), np.uint8)
            if image.format == "GIF":
                for part in itertools.islice(parts(file.head(-1)), count):  # no more than were checked
                    durations.append(part.duration_ms)
                    frames.append(_drawn(canvas, _alone(part, file.name, max_pixels), _how(part)))
            for index in range(first, 0 if frames else count):
                image.seek(index)
                how = _taken_over(image) if isinstance(image, PngImagePlugin.PngImageFile) else None
                image.load()
                durations.append(image.info.get("duration"))
                turned = None if image.format == "AVIF" else 1  # in the others nobody heeds EXIF's orientation
                frame = picture_of(image, file.name, str(image.format), turned)
                frames.append(frame if how is None else _drawn(canvas, _cut(frame, how), how))
            lossless = is_lossless_webp(file.stream) if image.format == "WEBP" else image.format != "AVIF"
            frames = [replace(frame, lossless=lossless) for frame in frames]
            return Animation(_alike(frames), _durations_ms(durations), _plays(image), str(image.format))


class _Drawing(NamedTuple):
    """How a frame comes onto the canvas, and goes."""

    box: tuple[int, int, int, int]  # left, top, right, bottom; what lies beyond the canvas is not seen
    over: bool  # what is there shows through; else it is replaced
    disposal: PngImagePlugin.Disposal


def _taken_over(image: PngImagePlugin.PngImageFile) -> _Drawing:
    """How the frame an image is at is to be drawn. Pillow will only decode it: drawing, it mixes alpha as if it were a
    colour, and clears to the first colour of a palette."""
    left, top, right, bottom = map(int, image.dispose_extent)
    how = _Drawing(
        (left, top, right, bottom),
        image.blend_op == PngImagePlugin.Blend.OP_OVER,
        PngImagePlugin.Disposal(image.dispose_op or 0),
    )
    image.blend_op = PngImagePlugin.Blend.OP_SOURCE
    image.decoderconfig = ()  # to which Pillow adds, for each frame again, that they are interlaced
    return how


def _alone(part: Part, name: str, max_pixels: int | None) -> Picture:
    """What a frame of a GIF file draws."""
    with recognise(Opened(name, io.BytesIO(part.alone))) as image:
        check_pixels(name, image.size[0] * image.size[1], max_pixels)  # which may be more than the screen has
        image.load()
        return picture_of(image, name, "GIF", 1)


def _how(part: Part) -> _Drawing:
    methods = PngImagePlugin.Disposal
    disposal = {2: methods.OP_BACKGROUND, 3: methods.OP_PREVIOUS, 4: methods.OP_PREVIOUS}
    return _Drawing(part.place, True, disposal.get(part.disposal, methods.OP_NONE))


def _cut(frame: Picture, how: _Drawing) -> Picture:
    left, top, right, bottom = how.box
    return replace(frame, pixels=frame.pixels[top:bottom, left:right])


def _drawn(canvas: Array, part: Picture, how: _Drawing) -> Picture:
    """The canvas, (H, W, 4) uint8, with a part drawn on it, which is then disposed of as it wants."""
    left, top, right, bottom = how.box
    place = canvas[top:bottom, left:right]
    before = place.copy()
    whole = _as_colour(part, alpha=True)
    place[:] = whole.pixels[: place.shape[0], : place.shape[1]]
    if how.over and place.size:
        place[:] = Image.alpha_composite(Image.fromarray(before), Image.fromarray(place.copy()))
    opaque = bool((canvas[..., 3] == 255).all())
    shown = replace(whole, pixels=canvas[..., : 3 if opaque else 4].copy())
    if how.disposal == PngImagePlugin.Disposal.OP_BACKGROUND:
        place[:] = 0
    elif how.disposal == PngImagePlugin.Disposal.OP_PREVIOUS:
        place[:] = before
    return shown


def _plays(image: Image.Image) -> int:
    if image.format == "AVIF":
        return 0
    loop = image.info.get("loop")
    if image.format == "GIF":  # which says how often it begins anew
        return 1 if loop is None else loop + 1 if loop else 0
    return int(loop or 0)


def _durations_ms(stated: list[Any]) -> tuple[int, ...]:
    """In whole milliseconds that add up to what is stated: a rounding of each frame's own would change the speed."""
    told = [each if isinstance(each, int | float) and round(each) > _TOO_SHORT_MS else _DEFAULT_MS for each in stated]
    ends = np.rint(np.cumsum(told)).astype(int)
    return tuple(max(_TOO_SHORT_MS + 1, int(step)) for step in np.diff(ends, prepend=0))


def _alike(frames: list[Picture]) -> tuple[Picture, ...]:
    if len({frame.size for frame in frames}) > 1:
        raise InputError("frames of different sizes")
    # Some readers give every frame alpha, transparent or not.
    alpha = any(
        frame.alpha is not None and bool((frame.alpha < full_scale(frame.alpha.dtype)).any()) for frame in frames
    )
    return tuple(_as_colour(frame, alpha) for frame in frames)


def _as_colour(frame: Picture, alpha: bool) -> Picture:
    pixels, icc = frame.pixels, frame.icc
    if pixels.dtype == np.uint16:  # grey PNG files; of colour Pillow reads eight bits anyway
        pixels = eight_bits(pixels)
    colour, opaque = pixels, np.full(frame.size, 255, np.uint8)
    if frame.has_alpha:
        colour, opaque = pixels[..., :-1], pixels[..., -1]
    if frame.is_grey and icc is not None:  # a profile of grey says nothing of colours
        colour, icc = as_channels(in_srgb(_image(colour), icc)), None
    colour = np.broadcast_to(colour, (*frame.size, 3))
    whole = np.concatenate([colour, opaque[..., None]], axis=2) if alpha else np.ascontiguousarray(colour)
    return replace(frame, pixels=whole, icc=icc)


def check_animation(
    path: Path,
    size: tuple[int, int],
    like: Picture,
    *,
    format: str | None = None,
    overwrite: bool = False,
) -> Format:
    """Ask, before any work, whether `path` can become an animation of `size` whose frames are like `like`.

    Returns the format; raises what `write_animation` would.
    """
    known = format_of(path, format)
    if known.name not in MOVING:
        raise OutputError(f"{path}: {known.name} cannot hold an animation; use .gif, .webp, .png or .avif")
    if like.pixels.dtype != np.uint8:
        raise OutputError(f"{path}: animations hold 8 bits per channel only; convert the frames first")
    # GIF rounds partial transparency here: a moving picture of that kind is nearly always one already.
    asked = replace(like, pixels=like.colour) if known.name == "GIF" else like
    return check_output(path, size, asked, format=format, overwrite=overwrite)


def write_animation(
    path: Path,
    animation: Animation,
    *,
    format: str | None = None,
    quality: int | None = None,
    strip: bool = False,
    overwrite: bool = False,
) -> None:
    """Write the frames as an animated GIF, WebP, PNG or AVIF file, by the extension of `path` or by `format`.

    WebP is lossless where `quality` is None and the source was not a lossy WebP. `strip` as `open_writer` has it.
    Raises OutputError for a format that does not move, for 16-bit frames, and as `open_writer` does; UsageError for an
    unknown format.
    """
    like = animation.frames[0]
    if any(frame.pixels.dtype != like.pixels.dtype for frame in animation.frames):
        raise OutputError(f"{path}: the frames differ in depth; convert them first")
    known = check_animation(path, like.size, like, format=format, overwrite=overwrite)
    with atomic_path(path, overwrite=overwrite) as temporary:
        try:
            with quiet(), temporary.open("w+b") as file:
                if known.name == "GIF":
                    # GIF holds no profile: colours become what they look like.
                    frames = [
                        frame.pixels if frame.icc is None else as_channels(in_srgb(_image(frame.pixels), frame.icc))
                        for frame in animation.frames
                    ]
                    save_gif(file, frames, animation.durations_ms, animation.plays)
                else:
                    options = _options(known.name, animation, quality, strip)
                    images = [_image(frame.pixels) for frame in animation.frames]
                    images[0].save(file, save_all=True, append_images=images[1:], **options)
        # RuntimeError is libavif's; struct.error that of Pillow's before 12.1, of frames shown for more than a minute.
        except (OSError, ValueError, MemoryError, RuntimeError, struct.error) as error:
            raise cannot_write(path, error) from error


def _image(pixels: Array) -> Image.Image:
    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)


def _options(name: str, animation: Animation, quality: int | None, strip: bool) -> dict[str, Any]:
    like = carried(animation.frames[0], animation.frames[0].size, strip=strip)
    options = {**beside(like, name), "duration": list(animation.durations_ms)}
    if name == "AVIF":  # which always repeats for ever, as readers have it
        return options | {"format": "AVIF", "quality": quality or AVIF_QUALITY, "subsampling": "4:4:4"}
    options["loop"] = min(animation.plays, _MOST_PLAYS)
    if name == "PNG":
        # Disposal 0 and blend 0: each frame is the whole canvas and replaces the one before.
        options["duration"] = [_of_16_bits(each) for each in animation.durations_ms]
        return options | {"format": "PNG", "compress_level": PNG_LEVEL, "disposal": 0, "blend": 0}
    lossless = is_kept_lossless(like, quality, moving=True)
    return options | {"format": "WEBP", "lossless": lossless, "quality": quality or WEBP_QUALITY}


def _of_16_bits(duration_ms: int) -> int:
    """A duration as PNG can say it, as a quotient of two numbers of 16 bits: beyond 65 seconds less finely."""
    unit = next((unit for unit in (1, 10, 100, 1000) if duration_ms <= 0xFFFF * unit), 1000)
    return min(round(duration_ms / unit), 0xFFFF) * unit
