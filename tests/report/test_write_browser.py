"""The pages of a run as headless Chromium shows them: `pytest -m browser`."""

import io
import shutil

import numpy as np
import pytest
from PIL import Image
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By

from tests.support.written_pages import train
from vit_jax import main

pytestmark = pytest.mark.browser
WIDTHS = (1280, 390)  # A desk and a phone.
# Elements that stick out of the window, but for what lies in a box that scrolls.
STICK_OUT = """
return [...document.querySelectorAll("main *")].filter((each) =>
  !each.closest(".scroll") && each.getBoundingClientRect().right > innerWidth + 1
).map((each) => each.outerHTML.slice(0, 80));
"""
# Neighbours in the page that lie on top of each other.
OVERLAP = """
const boxes = [...document.querySelectorAll("section, header, .plot, .card, .grid > figure")];
const inside = (a, b) => a.contains(b) || b.contains(a);
return boxes.flatMap((a, i) => boxes.slice(i + 1).filter((b) => {
  const p = a.getBoundingClientRect(), q = b.getBoundingClientRect();
  return !inside(a, b) && p.left < q.right - 1 && q.left < p.right - 1 &&
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
    folder = train(tmp_path_factory.mktemp("runs") / "quickstart")
    assert main.run(["report", str(folder)]) == 0
    killed = folder / "killed"
    shutil.copytree(folder / "finetune", killed)
    for name in ("summary.json", "checkpoints", "report.html"):
        path = killed / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert main.run(["report", str(killed)]) == 0
    return folder


def show(browser, path, width: int, scheme: str = "light") -> None:
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    wanted = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", wanted)
    browser.get(path.as_uri())


PAGES = ("finetune/report.html", "killed/report.html", "report.html")


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", PAGES)
def test_a_page_draws_its_plots_fits_the_window_and_complains_of_nothing(
    browser, folder, name, width
):
    show(browser, folder / name, width)
    places = browser.find_elements(By.CSS_SELECTOR, ".plot")
    assert len(places) >= 6
    assert all(place.find_elements(By.TAG_NAME, "canvas") for place in places)
    assert browser.execute_script("return document.documentElement.scrollWidth") == width
    assert browser.execute_script(STICK_OUT) == []
    assert browser.execute_script(OVERLAP) == []
    loaded = "return [...document.images].filter((image) => !image.naturalWidth).length"
    assert browser.execute_script(loaded) == 0
    assert browser.get_log("browser") == []


def drawn(place) -> np.ndarray:
    with Image.open(io.BytesIO(place.screenshot_as_png)) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def test_a_click_on_a_name_hides_its_curve(browser, folder):
    show(browser, folder / "finetune" / "report.html", 1280)
    place = browser.find_element(By.CSS_SELECTOR, ".plot")
    canvas = place.find_element(By.TAG_NAME, "canvas")
    before = drawn(canvas)
    blue = (abs(before - (0x00, 0x72, 0xB2)) < 40).all(-1)
    assert blue.sum() > 50, "the first curve is drawn"
    place.find_elements(By.CSS_SELECTOR, ".u-series th")[1].click()
    after = drawn(canvas)
    assert not (abs(after - (0x00, 0x72, 0xB2)) < 40).all(-1).any()


def test_the_dark_page_is_dark(browser, folder):
    shades = []
    for scheme in ("light", "dark"):
        show(browser, folder / "report.html", 1280, scheme)
        shades.append(drawn(browser.find_element(By.TAG_NAME, "body"))[:, :20].mean())
    assert shades[0] > 250
    assert shades[1] < 40
