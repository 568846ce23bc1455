"""Pages in headless Chromium: `pytest -m browser`."""

import io
import shutil

import numpy as np
import pytest
from PIL import Image
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.select import Select

from tests.support.finished_runs import write_attempts, write_run_without_labels
from tests.support.written_pages import (
    change_config,
    copy_as_killed,
    train_quickstart,
    train_without_labels,
)
from vit_jax import main
from vit_jax.figures import reconstruction
from vit_jax.report.predictions import NUM_RECONSTRUCTED

pytestmark = pytest.mark.browser
WIDTHS = (1280, 390)  # Pixels of a desktop and of a phone.
# Elements that extend beyond the window, except inside a box that scrolls.
OVERFLOWING = """
return [...document.querySelectorAll("main *")].filter((element) =>
  !element.closest(".scroll") && element.getBoundingClientRect().right > innerWidth + 1
).map((element) => element.outerHTML.slice(0, 80));
"""
# Pairs of boxes that overlap.
OVERLAPPING = """
const boxes = [...document.querySelectorAll("section, header, .plot, .card, .grid > figure")];
const isNested = (a, b) => a.contains(b) || b.contains(a);
return boxes.flatMap((a, i) => boxes.slice(i + 1).filter((b) => {
  const p = a.getBoundingClientRect(), q = b.getBoundingClientRect();
  return !isNested(a, b) && p.left < q.right - 1 && q.left < p.right - 1 &&
    p.top < q.bottom - 1 && q.top < p.bottom - 1;
}).map((b) => a.className + " " + b.className));
"""


@pytest.fixture(scope="module")
def browser():
    options = webdriver.ChromeOptions()
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = shutil.which("chromedriver")
    assert driver, "chromedriver is not installed"
    with webdriver.Chrome(options, Service(driver)) as chrome:
        yield chrome


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = train_quickstart(tmp_path_factory.mktemp("runs") / "quickstart")
    assert main.run(["report", str(folder)]) == 0
    killed = copy_as_killed(folder / "finetune", folder / "killed", keep_checkpoints=False)
    assert main.run(["report", str(killed)]) == 0
    write_run_without_labels(folder / "features")
    write_attempts(folder / "features")
    assert main.run(["report", "--no_model", str(folder / "features")]) == 0
    for task in ("mae", "dino"):
        train_without_labels(folder / task, task)
    return folder


def show(browser, path, width: int, scheme: str = "light") -> None:
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    features = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", features)
    browser.get(path.as_uri())


RUNS = ("finetune/", "killed/", "features/", "mae/", "dino/", "")


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", [f"{run}report.html" for run in RUNS])
def test_page_plots_its_charts_and_fits_the_window_without_errors(browser, folder, name, width):
    show(browser, folder / name, width)
    plots = browser.find_elements(By.CSS_SELECTOR, ".plot")
    assert len(plots) >= 6
    assert all(plot.find_elements(By.TAG_NAME, "canvas") for plot in plots)
    assert browser.execute_script("return document.documentElement.scrollWidth") == width
    assert browser.execute_script(OVERFLOWING) == []
    assert browser.execute_script(OVERLAPPING) == []
    broken_images = "return [...document.images].filter((image) => !image.naturalWidth).length"
    assert browser.execute_script(broken_images) == 0
    assert browser.get_log("browser") == []


def screenshot(element) -> np.ndarray:
    with Image.open(io.BytesIO(element.screenshot_as_png)) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def test_click_on_a_legend_entry_hides_its_curve(browser, folder):
    show(browser, folder / "finetune" / "report.html", 1280)
    plot = browser.find_element(By.CSS_SELECTOR, ".plot")
    canvas = plot.find_element(By.TAG_NAME, "canvas")
    before = screenshot(canvas)
    blue = (abs(before - (0x00, 0x72, 0xB2)) < 40).all(-1)
    assert blue.sum() > 50, "the first curve is plotted"
    plot.find_elements(By.CSS_SELECTOR, ".u-series th")[1].click()
    after = screenshot(canvas)
    assert not (abs(after - (0x00, 0x72, 0xB2)) < 40).all(-1).any()


@pytest.mark.parametrize("width", WIDTHS)
def test_reconstruction_shows_the_four_images_of_an_example_side_by_side(browser, folder, width):
    show(browser, folder / "mae" / "report.html", width)
    rows = browser.find_elements(By.CSS_SELECTOR, "#reconstruction .row")
    assert len(rows) == NUM_RECONSTRUCTED
    for row in rows:
        images = row.find_elements(By.TAG_NAME, "img")
        assert [image.get_attribute("alt") for image in images] == list(reconstruction.TITLES)
        assert len({image.rect["y"] for image in images}) == 1
        assert min(image.rect["width"] for image in images) >= 60
        original, masked, predicted, combined = map(screenshot, images)
        assert all(pixels.std() > 5 for pixels in (original, masked, predicted)), "not empty"
        is_grey = (abs(masked - 128) < 3).all(-1)
        assert abs(is_grey.mean() - 0.75) < 0.1, "task.mask_ratio"
        # Most pixels: those at borders of patches are blurred.
        assert np.median(abs(combined - predicted)[is_grey]) < 3
        assert np.median(abs(combined - original)[~is_grey]) < 3


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("task", ["mae", "dino"])
def test_features_plots_the_probes_and_the_targets_of_a_task(browser, folder, task, width):
    show(browser, folder / task / "report.html", width)
    section = browser.find_element(By.ID, "features")
    titles = [title.text for title in section.find_elements(By.CSS_SELECTOR, ".u-title")]
    assert "Accuracy of frozen features" in titles
    assert ("Entropy of the targets" in titles) == (task == "dino")
    for canvas in section.find_elements(By.TAG_NAME, "canvas"):
        colours = screenshot(canvas)
        is_blue = (abs(colours - (0x00, 0x72, 0xB2)) < 40).all(-1)
        assert is_blue.sum() > 50, "the first curve is plotted"
    assert section.find_elements(By.CSS_SELECTOR, ".scroll table")


@pytest.fixture(scope="module")
def seeds(folder, tmp_path_factory):
    """The comparison of two seeds of one run and of a run with another batch size."""
    top = tmp_path_factory.mktemp("seeds")
    for name in ("a", "b", "c"):
        shutil.copytree(folder / "scratch", top / name)
    change_config(top / "b", "", seed=1)
    change_config(top / "c", "", batch_size=25)
    assert main.run(["report", "--no_model", str(top)]) == 0
    return top / "report.html"


def first_column(browser) -> list[str]:
    cells = browser.find_elements(By.CSS_SELECTOR, "#runs tbody td:first-child a")
    return [cell.text for cell in cells]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_comparison_changes_its_axis_smoothing_and_curves(browser, seeds, width, scheme):
    show(browser, seeds, width, scheme)
    browser.execute_script("sessionStorage.clear()")
    show(browser, seeds, width, scheme)
    select, log, mean = (
        browser.find_element(By.CSS_SELECTOR, f".controls {element}")
        for element in ("select", "label:nth-of-type(3) input", "label:nth-of-type(4) input")
    )
    canvas = browser.find_element(By.CSS_SELECTOR, ".plot canvas")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", canvas)
    before = canvas.screenshot_as_png
    for option in ("epoch", "time"):
        Select(select).select_by_visible_text(option)
        label = browser.find_element(By.CSS_SELECTOR, ".u-series th").text
        assert label.strip().rstrip(":") == option
    log.click()
    mean.click()
    labels = [each.text for each in browser.find_elements(By.CSS_SELECTOR, ".plot .u-series th")]
    assert any("(mean of 2)" in label for label in labels)
    canvas = browser.find_element(By.CSS_SELECTOR, ".plot canvas")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", canvas)
    assert canvas.screenshot_as_png != before
    show(browser, seeds, width, scheme)  # The settings outlast a reload.
    assert browser.find_element(By.CSS_SELECTOR, ".controls select").get_property("value") == "time"
    assert browser.execute_script("return document.documentElement.scrollWidth") == width
    assert browser.execute_script(OVERFLOWING) == []
    assert browser.get_log("browser") == []
    browser.execute_script("sessionStorage.clear()")


def test_comparison_sorts_its_runs_and_hides_one_in_every_plot(browser, seeds):
    show(browser, seeds, 1280)
    heading = browser.find_element(By.CSS_SELECTOR, "#runs th")
    heading.click()
    assert first_column(browser) == ["a", "b", "c"]
    heading.click()
    assert first_column(browser) == ["c", "b", "a"]
    assert heading.get_attribute("aria-sort") == "descending"
    browser.find_element(By.CSS_SELECTOR, '.swatch[data-run="1"]').click()
    hidden = browser.find_elements(By.CSS_SELECTOR, ".u-series.u-off th")
    plots = browser.find_elements(By.CSS_SELECTOR, ".plot")
    assert [each.text.rstrip(": ") for each in hidden] == ["b"] * len(plots)
    browser.execute_script("sessionStorage.clear()")


def test_page_follows_the_preferred_colour_scheme(browser, folder):
    brightness = []
    for scheme in ("light", "dark"):
        show(browser, folder / "report.html", 1280, scheme)
        brightness.append(screenshot(browser.find_element(By.TAG_NAME, "body"))[:, :20].mean())
    assert brightness[0] > 250
    assert brightness[1] < 40
