"""The main path in a real browser: the served application, its plot, a click, a refresh."""

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait
from served_app import served

from autopeft.study.records import StudyState, TrialState
from dashboard import launch
from storage import open_store
from storage.lease import this_process

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1400,1700",
)
PATIENCE_S = 60.0
FRONT_POINTS = """
  const traces = [...document.querySelectorAll('.stPlotlyChart .scatterlayer .trace')];
  const front = traces.map(t => [...t.querySelectorAll('path.point')]).find(p => p.length == 4);
  return front ? front.map(p => {
    const box = p.getBoundingClientRect();
    return [box.x + box.width / 2, box.y + box.height / 2];
  }) : null;
"""
"""The centres of the four points of the front, from the cheapest to the best."""

pytestmark = pytest.mark.skipif(
    BROWSER is None or DRIVER is None,
    reason="chromium and chromedriver are not installed: apt-get install chromium chromium-driver",
)


@pytest.fixture(scope="module")
def database(
    templates: Callable[[tuple[str, ...]], Path], tmp_path_factory: pytest.TempPathFactory
) -> str:
    """A finished study and one that nobody runs yet, in a file of their own."""
    folder = tmp_path_factory.mktemp("database")
    return f"sqlite:///{shutil.copy(templates(('finished', 'killed')), folder)}"


@pytest.fixture(scope="module")
def served_app(database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The application on a free loopback port; its address."""
    with served(database, tmp_path_factory.mktemp("cwd")) as port:
        yield launch.address("127.0.0.1", port)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = str(BROWSER)
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(str(DRIVER)))
    try:
        yield driver
    finally:
        driver.quit()


def _text(browser: webdriver.Chrome) -> str:
    return str(browser.execute_script("return document.body.innerText"))


def _until(browser: webdriver.Chrome, reached: Callable[[], object]) -> None:
    WebDriverWait(browser, PATIENCE_S, 0.2).until(lambda _: reached())
    assert not browser.find_elements(By.CSS_SELECTOR, '[data-testid="stException"]')


def _click(browser: webdriver.Chrome, x: float, y: float) -> None:
    """A click as the mouse makes it: Plotly selects what was hovered before."""
    for kind, count in (("mouseMoved", 0), ("mousePressed", 1), ("mouseReleased", 1)):
        event = {"type": kind, "x": x, "y": y, "button": "left", "clickCount": count}
        browser.execute_cdp_cmd("Input.dispatchMouseEvent", event)
        time.sleep(0.3)


def test_a_click_on_the_front_shows_that_trial(
    served_app: str, browser: webdriver.Chrome, tmp_path: Path
) -> None:
    browser.get(f"{served_app}front?study=finished")
    _until(browser, lambda: browser.execute_script(FRONT_POINTS))
    _until(browser, lambda: "schema: autopeft/config/v1" in _text(browser))
    text = _text(browser)
    assert "Trial 4\n" in text
    assert "Progress" in text  # the navigation, also where the first request names a page

    _click(browser, *browser.execute_script(FRONT_POINTS)[3])
    _until(browser, lambda: "trial=5" in browser.current_url)
    _until(browser, lambda: "autopeft export finished --trial 5" in _text(browser))
    assert "study=finished" in browser.current_url

    picture = tmp_path / "front.png"
    assert browser.save_screenshot(str(picture))
    assert picture.stat().st_size > 20_000


def test_a_running_study_refreshes_and_keeps_the_chosen_trial(
    served_app: str, browser: webdriver.Chrome, database: str
) -> None:
    with open_store(database) as store:
        token = store.claim("killed", this_process(), 600.0)
        browser.get(f"{served_app}front?study=killed&trial=3")
        _until(browser, lambda: "9 / 26" in _text(browser))
        _until(browser, lambda: "autopeft export killed --trial 3" in _text(browser))

        store.finish_trial("killed", token, 9, TrialState.STOPPED)
        _until(browser, lambda: "10 / 26" in _text(browser))
        assert "autopeft export killed --trial 3" in _text(browser)
        assert "trial=3" in browser.current_url

        store.update_study("killed", token, state=StudyState.FINISHED)
        _until(browser, lambda: "Time spent" in _text(browser))


def test_links_lead_from_the_list_to_a_front(served_app: str, browser: webdriver.Chrome) -> None:
    browser.get(served_app)
    _until(browser, lambda: browser.find_elements(By.PARTIAL_LINK_TEXT, "finished"))
    browser.find_element(By.PARTIAL_LINK_TEXT, "finished").click()
    _until(browser, lambda: "study=finished" in browser.current_url)
    _until(browser, lambda: browser.execute_script(FRONT_POINTS))
