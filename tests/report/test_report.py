"""The page: whole, self-contained, true to the run, and clear about what is missing."""

from __future__ import annotations

import io
import json
import re
import shutil
from base64 import b64decode
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from fabricated import digits_recipe, make_run
from PIL import Image

from headgate.counting import Counts
from headgate.errors import CheckpointError, ConfigError
from headgate.report import write_report
from headgate.report.embed import Gallery, inline_svg
from headgate.report.numbers import amount, change, percent, points, times, whole
from headgate.report.run import read_dense, read_run

SECTIONS = ["headline", "layers", "images", "maps", "behind"]
FIGURES = {
    *("loss", "accuracy", "reduction", "density", "macs-by-path", "macs-by-layer", "channels-used"),
    *("reduction-by-image", "reduction-by-class", "images", "decisions"),
}


class Page(HTMLParser):
    """Sections, identifiers, pictures, references and running text of a page."""

    VOID = ("meta", "img", "br", "use", "path", "rect", "link")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.sections: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.pictures: list[dict[str, str]] = []
        self.svgs: list[str] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        if tag == "section":
            self.sections.append(values["id"])
        if "id" in values:
            self.ids.append(values["id"])
        self.references += [values[name] for name in ("src", "href", "xlink:href", "srcset") if name in values]
        if tag == "img":
            self.pictures.append(values)
        if tag == "svg":
            self.svgs.append(values.get("aria-label", ""))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))  # a no-break space is white space too


@pytest.fixture(scope="module")
def written(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The gated run's page."""
    return write_report(runs / "gated", out=tmp_path_factory.mktemp("report"))


@pytest.fixture
def no_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the PNGs beside the page: they take most of the time."""
    monkeypatch.setattr(Gallery, "write", lambda _gallery, _folder: None)


@pytest.fixture(scope="module")
def page(written: Path) -> Page:
    return Page(written.read_text("utf-8"))


# ------------------------------------------------------------------ the page


def test_every_section_and_every_figure_is_there(written: Path, page: Page) -> None:
    assert page.sections == SECTIONS
    assert not page.open
    assert {file.stem for file in written.parent.glob("*.png")} == FIGURES
    for file in written.parent.glob("*.png"):
        Image.open(file).verify()
    assert len(page.svgs) == len(FIGURES - {"images", "decisions"})
    assert not list(written.parent.glob(".*.part"))


def test_it_needs_nothing_else(written: Path, page: Page) -> None:
    inside = [reference for reference in page.references if reference.startswith("#")]
    assert {reference[1:] for reference in inside} <= set(page.ids)
    others = [reference for reference in page.references if not reference.startswith("#")]
    assert others
    assert all(reference.startswith("data:image/png;base64,") for reference in others)
    text = written.read_text("utf-8")
    assert not re.search(r"https?://|file:|@import|<script|<link", text)
    assert {match[1:] for match in re.findall(r"url\(([^)]*)\)", text)} <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))


def test_pictures_have_words(page: Page) -> None:
    assert all(label.strip() for label in page.svgs)
    assert all(picture["alt"].strip() for picture in page.pictures)
    assert len(page.pictures) == 2 * 10 + 6 * 5  # two of each class; six images, three layers and their sum
    for picture in page.pictures:
        side = Image.open(io.BytesIO(b64decode(picture["src"].partition(",")[2]))).size
        assert side in ((96, 96), (128, 128))


def test_figures_take_the_colours_of_the_page(written: Path) -> None:
    text = written.read_text("utf-8")
    drawings = "".join(re.findall(r"<svg.*?</svg>", text, re.S))
    assert "var(--blue)" in drawings
    assert not re.search(r"(fill|stroke): #", drawings)
    used = set(re.findall(r"var\(--(\w+)\)", text))
    assert used <= set(re.findall(r"--(\w+):", text))


def test_numbers_are_the_runs(page: Page, counts: Counts) -> None:
    assert f"{counts.mac_reduction:.2f}× fewer MACs at 90.00 % accuracy" in page.text
    assert f"{counts.network_mac_reduction:.2f}× in the whole network" in page.text
    assert "Its dense counterpart reaches 95.00 %: the gates cost 5.00 points." in page.text
    assert f"{100 * counts.density:.1f} % density" in page.text
    traffic = counts.traffic()
    assert f"−{100 * traffic.saved:.1f} %" in page.text
    for record in counts.by_layer():
        assert record.name in page.text
    reductions = counts.dense_macs / counts.by_image()
    assert f"the dearest is computed with {reductions.min():.2f}×" in page.text
    assert f"the cheapest with {reductions.max():.2f}×: {reductions.max() / reductions.min():.1f}×" in page.text


def test_what_is_behind(page: Page) -> None:
    for words in ("mac_reduction 2.5", "granularity activation", "recipe.json", "UTC", f"torch {torch.__version__}"):
        assert words in page.text


def test_the_program_repeats_the_run(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[object, str]] = []
    monkeypatch.setattr("headgate.train.train", lambda recipe, folder: calls.append((recipe, folder)))
    (program,) = [words for words in page.words if "Recipe.from_dict" in words]
    exec(program, {})
    assert calls == [(digits_recipe("activation"), "runs/gated-again")]


# ---------------------------------------------------------------- what is not there


def test_without_data_the_counts_are_still_shown(runs: Path, tmp_path: Path) -> None:
    page = Page(write_report(runs / "gated", data=str(tmp_path / "nowhere"), out=tmp_path).read_text("utf-8"))
    assert page.sections == SECTIONS
    assert "the images could not be had: expected a dataset at" in page.text
    assert "No decision maps: expected a dataset at" in page.text
    assert not page.pictures
    assert {file.stem for file in tmp_path.glob("*.png")} == FIGURES - {"reduction-by-class", "images", "decisions"}


def test_a_dense_run_says_so(runs: Path, tmp_path: Path) -> None:
    page = Page(write_report(runs / "dense", out=tmp_path).read_text("utf-8"))
    assert page.sections == SECTIONS
    assert page.text.count("Nothing is gated") == 4
    assert {file.stem for file in tmp_path.glob("*.png")} == {"loss", "accuracy", "macs-by-layer"}
    assert not page.pictures


@pytest.mark.usefixtures("no_files")
def test_gates_that_do_not_answer_say_so(tmp_path: Path) -> None:
    page = Page(write_report(make_run(tmp_path / "static", forced=True)).read_text("utf-8"))
    assert page.text.count("do not answer to what they see") == 2
    assert "4.00× fewer MACs" in page.text


@pytest.mark.usefixtures("no_files")
def test_gates_for_whole_channels_have_no_maps(tmp_path: Path) -> None:
    page = Page(write_report(make_run(tmp_path / "channel", "channel"), images=50).read_text("utf-8"))
    assert "No decision maps: its gates decide for whole channels" in page.text
    assert "50 of 360 test images, spread evenly" in page.text
    assert "additions" in page.text


@pytest.mark.usefixtures("no_files")
def test_without_metrics_or_a_dense_run_it_says_so(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = tmp_path / "alone" / "run"
    shutil.copytree(runs / "gated", alone)
    (alone / "metrics.jsonl").unlink()
    monkeypatch.chdir(alone)
    page = Page(write_report(".", data=str(tmp_path / "nowhere")).read_text("utf-8"))
    assert "no training curves" in page.text
    assert "No dense run was given and none was found beside this one" in page.text


@pytest.mark.usefixtures("no_files")
def test_names_are_text_not_markup(runs: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(runs / "gated", run)
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps(summary | {"name": "<script>alert(1)</script>"}))
    text = write_report(run, data=str(tmp_path / "<b>nowhere")).read_text("utf-8")
    assert "<script>" not in text
    assert "<b>nowhere" not in text
    assert "&lt;script&gt;" in text


# ------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        (("recipe.json",), "holds no run: recipe.json is missing"),
        (("counts.json", "model.safetensors"), "not finished: counts.json, model.safetensors missing; finish it"),
        (("summary.json",), "not finished: summary.json missing"),
    ],
)
def test_what_is_missing_is_named(runs: Path, tmp_path: Path, missing: tuple[str, ...], words: str) -> None:
    shutil.copytree(runs / "gated", tmp_path / "run")
    for name in missing:
        (tmp_path / "run" / name).unlink()
    with pytest.raises(CheckpointError, match=words):
        write_report(tmp_path / "run")


@pytest.mark.parametrize("name", ["recipe.json", "summary.json", "counts.json", "model.safetensors"])
def test_a_damaged_file_is_named(runs: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(runs / "gated", tmp_path / "run")
    (tmp_path / "run" / name).write_bytes(b'{"accuracy": ')
    with pytest.raises(CheckpointError, match=name):
        write_report(tmp_path / "run")


def test_no_folder_no_report(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"found no folder .*; make one with headgate train"):
        write_report(tmp_path / "nowhere")


def test_the_dense_run_must_be_dense_and_of_the_same_network(runs: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="which is gated"):
        write_report(runs / "gated", dense=runs / "gated")
    shutil.copytree(runs / "dense", tmp_path / "other")
    recipe = json.loads((tmp_path / "other" / "recipe.json").read_text())
    recipe["architecture"]["name"] = "resnet20"
    (tmp_path / "other" / "recipe.json").write_text(json.dumps(recipe))
    with pytest.raises(ConfigError, match=r"same network, got resnet20 in .* for digits-cnn"):
        write_report(runs / "gated", dense=tmp_path / "other")


@pytest.mark.parametrize("images", [0, -1, 1.5, True])
def test_images_must_be_a_number_of_them(runs: Path, images: int) -> None:
    with pytest.raises(ConfigError, match="images must be an integer ≥ 1"):
        write_report(runs / "gated", images=images)


def test_a_folder_that_cannot_be_made_is_named(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="cannot make the folder"):
        write_report(runs / "dense", out=tmp_path / "file" / "report")


# ------------------------------------------------------------ the dense counterpart


def copied(source: Path, target: Path, **changes: object) -> Path:
    shutil.copytree(source, target)
    recipe = json.loads((target / "recipe.json").read_text())
    (target / "recipe.json").write_text(json.dumps(recipe | changes))
    return target


def test_the_counterpart_is_the_sibling_that_differs_in_its_gates_only(runs: Path, tmp_path: Path) -> None:
    gated = copied(runs / "gated", tmp_path / "gated", seed=1)
    copied(runs / "dense", tmp_path / "a-longer", seed=1, epochs=200)
    copied(runs / "gated", tmp_path / "b-gated", seed=1)
    unfinished = copied(runs / "dense", tmp_path / "c-unfinished", seed=1)
    (unfinished / "summary.json").unlink()
    assert read_dense(read_run(gated), None) is None
    copied(runs / "dense", tmp_path / "d-seed0", seed=0)
    found = read_dense(read_run(gated), None)
    assert found is not None
    assert found.folder.name == "d-seed0"
    copied(runs / "dense", tmp_path / "e-seed1", seed=1, name="another name")
    found = read_dense(read_run(gated), None)
    assert found is not None
    assert found.folder.name == "e-seed1"


def test_the_counterpart_that_the_summary_names_comes_first(runs: Path, tmp_path: Path) -> None:
    gated = copied(runs / "gated", tmp_path / "gated")
    copied(runs / "dense", tmp_path / "a")
    copied(runs / "dense", tmp_path / "named", epochs=200)
    summary = json.loads((gated / "summary.json").read_text())
    (gated / "summary.json").write_text(json.dumps(summary | {"dense": "named"}))
    found = read_dense(read_run(gated), None)
    assert found is not None
    assert found.folder == tmp_path / "named"


# ------------------------------------------------------------------- small parts


def test_an_svg_becomes_part_of_a_page() -> None:
    svg = (
        '<?xml version="1.0"?><!DOCTYPE svg>\n<svg xmlns="http://x" width="1pt" viewBox="0 0 1 1">'
        "<metadata>m</metadata>"
        '<defs><style type="text/css">*{}</style><clipPath id="p"/></defs>'
        '<g id="a" clip-path="url(#p)" style="fill: #0072B2"/><use xlink:href="#a"/></svg>'
    )
    assert inline_svg(svg, "n", 'a "b" & c') == (
        '<svg class="figure" role="img" aria-label="a &#34;b&#34; &amp; c" viewBox="0 0 1 1">'
        '<defs><clipPath id="n-p"/></defs>'
        '<g id="n-a" clip-path="url(#n-p)" style="fill: var(--blue)"/><use href="#n-a"/></svg>'
    )


def test_numbers_are_readable() -> None:
    assert [amount(value) for value in (0, 7, 640, 999.7, 18_432, 1_474_560, 555e6, 3.6e9)] == [
        *("0", "7.00", "640", "1.00\xa0k", "18.4\xa0k", "1.47\xa0M", "555\xa0M", "3.60\xa0G")
    ]
    assert (times(3.786), times(float("inf")), percent(0.1427)) == ("3.79×", "∞", "14.3\xa0%")
    assert [points(value) for value in (-0.0028, 0.01, -0.00001)] == ["−0.28", "+1.00", "±0.00"]
    assert change(-0.264) == "−26.4\xa0%"
    assert (whole(360), whole(10_000)) == ("360", "10\xa0000")
