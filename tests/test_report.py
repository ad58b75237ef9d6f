"""The report: one file, nothing from outside, and a viewer that works in a real browser by mouse, keys and finger."""

import functools
import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

from liif_cli.benchmarks import find
from liif_cli.evaluate import KernelMethod, Row, Work, evaluate, summarise
from liif_cli.published import published
from liif_cli.report import Details, _lead, write_report
from liif_cli.report.curves import _ticks, draw_curves
from liif_cli.report.details import choose

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--hide-scrollbars",
]  # fmt: skip
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium to open the report in")

NASTY = "</script><script>alert(1)</script>&\"'{{tables}}.png"


class Made(NamedTuple):
    page: Path
    rows: list[Row]
    work: Work


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A report of two kernels on two sets of two pictures, one of them named to break pages."""
    root = tmp_path_factory.mktemp("pictures")
    for number, folder in enumerate(("one", "two")):
        (root / folder).mkdir()
        for name, shift in (("plain.png", 0), (NASTY.replace("/", "-") if number else "other.png", 1)):
            y, x = np.mgrid[:90, :110] / 9
            planes = [np.sin(x + shift), np.cos(y + number), np.sign(np.sin(x * y / 9))]
            Image.fromarray((127.5 + 120 * np.stack(planes, axis=2)).astype(np.uint8)).save(root / folder / name)
    methods = [KernelMethod("lanczos"), KernelMethod("bicubic")]
    methods[0].kind = "model"  # as far as the page is concerned
    work = Work(methods, [find(str(root / folder), []) for folder in ("one", "two")], [2.0, 2.5, 4.0])
    details = Details(work)
    scores = [score for _, score in evaluate(work, keepers=[details])]
    rows = summarise(scores)
    printed = {"one": {"A<B": {2.0: 31.5, 4.0: 26.0}}}
    page = write_report(tmp_path_factory.mktemp("out"), rows, scores, details, printed)
    return Made(page, rows, work)


def data_of(page: Path) -> Any:
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(), re.DOTALL)
    return json.loads(text)


def test_the_page_is_one_file_that_asks_for_nothing(made: Made) -> None:
    text = made.page.read_text()
    assert [path.name for path in made.page.parent.iterdir()] == ["index.html"]
    assert "default-src 'none'" in text
    assert not re.search(r"https?:|//\w+\.|@import|url\(", text)
    assert "{{" not in text.replace("{{tables}}.png", "")  # a picture's name
    assert made.page.stat().st_size < 1_500_000


def test_names_cannot_break_the_page(made: Made) -> None:
    class Scripts(HTMLParser):
        count = 0

        def handle_starttag(self, tag: str, attrs: object) -> None:
            self.count += tag == "script"

    parser = Scripts()
    parser.feed(made.page.read_text())
    assert parser.count == 2
    assert any(detail["image"] == NASTY.replace("/", "-") for detail in data_of(made.page)["details"])
    assert "A&lt;B" in made.page.read_text()


def test_every_score_is_in_the_page_and_the_published_ones_beside(made: Made) -> None:
    text = made.page.read_text()
    for row in made.rows:
        assert f">{row.psnr:.2f}</" in text
        assert f"<small>{row.ssim:.4f}</small>" in text
    assert "In print" in text
    assert "<td>31.50</td>" in text
    assert "Inputs: at x2, x4 MATLAB" in text


def test_every_detail_has_its_truth_and_every_method_at_every_scale(made: Made) -> None:
    data = data_of(made.page)
    assert [method["name"] for method in data["methods"]] == ["lanczos", "bicubic"]
    assert data["scales"] == ["2", "2.5", "4"]
    assert len(data["details"]) == 4
    for detail in data["details"]:
        assert detail["truth"].startswith("data:image/webp;base64,")
        assert detail["scales"].keys() == {"2", "2.5", "4"}
        for scale in detail["scales"].values():
            pictures = [scale["input"], *scale["methods"]]
            assert len(pictures) == 3
            assert all(uri.startswith("data:image/webp;base64,") for uri in pictures)
            assert len(set(pictures)) == 3
            assert all(20 < psnr < 60 for psnr in scale["psnr"])


def test_details_are_chosen_where_edges_are_and_inside_what_every_scale_paints(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pixels = np.full((300, 420, 3), 128, np.uint8)
    pixels[:, :210] += rng.integers(0, 12, (300, 210, 3), dtype=np.uint8)  # noise
    pixels[100:, 230:] = (np.arange(190) // 8 % 2 * 200)[:, None]  # stripes
    Image.fromarray(pixels).save(tmp_path / "a.png")
    Image.fromarray(pixels[:40, :30]).save(tmp_path / "small.png")
    Image.fromarray(pixels[:9, :30]).save(tmp_path / "too small.png")
    Image.fromarray(pixels[:1, :1]).save(tmp_path / "one pixel.png")
    dataset = find(str(tmp_path), [])
    first, second = choose(dataset, [2.0, 7.0], 3)
    assert first.truth.name == "a.png"
    assert first.window.left >= 200
    assert (first.window.height, first.window.width) == (192, 192)
    assert first.window.top + 192 <= 294  # 300 // 7 * 7
    assert second.window == (0, 0, 35, 28)
    assert len(choose(dataset, [2.0, 7.0], 5)) == 2


def test_the_lead_is_against_each_sets_best_kernel() -> None:
    def row(method: str, kind: str, dataset: str, psnr: float) -> Row:
        return Row(method, kind, dataset, 2.0, 1, psnr, 0.9, None, 1.0, 1, "pil")

    kernels = [("nearest", "pix", 26.2), ("bicubic", "pix", 24.0), ("nearest", "soft", 30.0), ("bicubic", "soft", 34.0)]
    rows = [row("mine", "model", "pix", 30.0), row("mine", "model", "soft", 36.0)]
    rows += [row(method, "kernel", dataset, psnr) for method, dataset, psnr in kernels]
    assert _lead(rows) == (
        "At ×2, mine against the best interpolation: +3.8 dB on pix (nearest) and +2.0 dB on soft (bicubic)."
    )
    assert _lead([each for each in rows if each.dataset == "soft"]) == "At ×2, mine against bicubic: +2.0 dB on soft."


def test_curves_show_own_scores_and_those_in_print_that_have_the_same_scales() -> None:
    rows = [
        Row("mine <1>", "model", "Set5", scale, 5, 40 - scale, 0.9, None, 1.0, 1, "pil") for scale in (2.0, 4.0, 30.0)
    ]
    drawn = draw_curves("Set5", rows, published("Set5"))
    assert "mine &lt;1&gt;, ×30: 10.00 dB" in drawn
    assert "RDN-LIIF, in print" in drawn
    assert drawn.count("<circle") == 3 + 2 * 5
    assert draw_curves("Set5", rows[:1], {}) == ""


@pytest.mark.parametrize(
    ("low", "high"), [(20.24, 37.51), (30.0, 30.0), (26.123456, 26.1234565), (-3.0, 61.0), (28.131, 28.134)]
)
def test_ticks_are_few_and_enclose_the_values(low: float, high: float) -> None:
    ticks = _ticks(low, high)
    assert ticks[0] <= low <= high <= ticks[-1]
    assert 2 <= len(ticks) <= 7


# --- in a browser


LOG = """
<script>
window.addEventListener("error", (event) => say("error " + event.message));
const said = [];
function say(text) { said.push(text); }
function shown() {
  const alts = [...document.querySelectorAll("#stage img")].map((it) => it.alt.split(": ")[1]);
  const scale = document.querySelector("#scales [aria-pressed=true]").textContent;
  const picture = document.querySelector("#details [aria-pressed=true] span").textContent;
  return [alts[1], alts[0], scale, picture, Math.round(document.getElementById("divider").value)].join("|");
}
function key(name, target) {
  (target || document.body).dispatchEvent(new KeyboardEvent("keydown", {key: name, bubbles: true, cancelable: true}));
}
window.addEventListener("load", () => {
  const stage = document.getElementById("stage"), divider = document.getElementById("divider");
  stage.setPointerCapture = () => { stage.hasPointerCapture = () => true; };
  const point = (kind, x) => {
    const box = stage.getBoundingClientRect();
    stage.dispatchEvent(new PointerEvent(kind, {clientX: box.left + box.width * x, pointerId: 1, bubbles: true}));
  };
  // All pictures that the page begins with are there: the load event waits for them.
  const pictures = [...document.images];
  say("pictures " + pictures.filter((it) => it.naturalWidth > 0).length + " of " + pictures.length);
  say(shown());
  point("pointerdown", 0.25); say(shown());
  point("pointermove", 0.75); say(shown());
  point("pointermove", 1.75); say(shown());
  key("f"); say(shown());
  document.getElementById("flip").click(); say(shown());
  key("ArrowUp", divider); key("ArrowUp", divider); say(shown());
  key("ArrowDown", divider); say(shown());
  key("4"); say(shown());
  key("n"); say(shown());
  document.getElementById("left").value = 0;
  document.getElementById("left").dispatchEvent(new Event("change")); say(shown());
  document.querySelectorAll("#methods button")[1].click(); say(shown());
  document.querySelectorAll("#scales button")[0].click(); say(shown());
  divider.value = 30; divider.dispatchEvent(new Event("input")); say(shown());
  const small = [...document.querySelectorAll("#pictures button, #pictures select")].filter((it) => {
    const box = it.getBoundingClientRect();
    return box.width < 40 || box.height < 40;
  });
  say("width " + document.documentElement.scrollWidth + " of " + window.innerWidth + ", small " + small.length);
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  say("dark " + dark + " " + getComputedStyle(document.body).backgroundColor);
  say("asked " + performance.getEntriesByType("resource").filter((it) => !it.name.startsWith("data:")).length);
  const log = document.createElement("pre");
  log.id = "log";
  log.textContent = JSON.stringify(said);
  top.document.body.append(log);
});
</script>
"""


@functools.cache
def opened(page: Path, width: int, dark: bool) -> list[str]:
    """Open the page in Chromium, use it, and return what it showed after each step."""
    assert CHROMIUM is not None
    used = page.parent / f"used-{width}-{dark}.html"
    # In a frame, since Chromium makes no window narrower than 500 pixels.
    content = html.escape(page.read_text().replace("</body>", LOG + "</body>"))
    frame = f'<iframe width="{width}" height="900" style="border: 0" srcdoc="{content}"></iframe>'
    used.write_text(f'<!doctype html><meta charset="utf-8"><body style="margin: 0">{frame}</body>')
    profile = page.parent / f"profile-{width}-{dark}"
    scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    command = [CHROMIUM, *FLAGS, scheme, f"--user-data-dir={profile}", "--window-size=1400,900", "--dump-dom"]
    ran = subprocess.run([*command, used.as_uri()], capture_output=True, text=True, check=False, timeout=120)
    found = re.search(r'<pre id="log">(.*?)</pre>', ran.stdout, re.DOTALL)
    assert found, ran.stderr[-2000:]
    shutil.rmtree(profile, ignore_errors=True)
    used.unlink()
    said: list[str] = json.loads(html.unescape(found[1]))
    return said


@needs_browser
def test_the_viewer_follows_pointer_keys_and_buttons(made: Made) -> None:
    said = opened(made.page, 1280, False)
    names = [detail["image"] for detail in data_of(made.page)["details"]]
    assert [name for name in said if name.startswith("error")] == []
    assert said[1:15] == [
        f"bicubic|lanczos|×4|{names[0]}|50",
        f"bicubic|lanczos|×4|{names[0]}|25",  # pressed
        f"bicubic|lanczos|×4|{names[0]}|75",  # dragged
        f"bicubic|lanczos|×4|{names[0]}|100",  # beyond the edge
        f"bicubic|lanczos|×4|{names[0]}|0",  # F: the other side
        f"bicubic|lanczos|×4|{names[0]}|100",  # and back
        f"bicubic|lanczos|×4|{names[0]}|100",  # up: no larger scale
        f"bicubic|lanczos|×2.5|{names[0]}|100",  # down
        f"bicubic|Original|×2.5|{names[0]}|100",  # 4
        f"bicubic|Original|×2.5|{names[1]}|100",  # N
        f"Input|Original|×2.5|{names[1]}|100",
        f"Input|lanczos|×2.5|{names[1]}|100",
        f"Input|lanczos|×2|{names[1]}|100",
        f"Input|lanczos|×2|{names[1]}|30",
    ]
    assert said[0] == "pictures 10 of 10"


@needs_browser
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
def test_it_fits_a_telephone_and_a_desk_by_day_and_by_night_and_asks_for_nothing(
    made: Made, width: int, dark: bool
) -> None:
    said = opened(made.page, width, dark)
    assert [text for text in said if text.startswith("width")] == [f"width {width} of {width}, small 0"]
    paper = "rgb(22, 22, 20)" if dark else "rgb(251, 250, 248)"
    assert f"dark {str(dark).lower()} {paper}" in said
    assert "asked 0" in said
