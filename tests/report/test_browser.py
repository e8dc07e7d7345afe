"""The HTML page in a real browser: it lives, asks for nothing, and lets nothing of a name run."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mtpfix import scan
from mtpfix.report import html
from tests.checkpoints import build
from tests.report import samples
from tests.report.hostile import HOSTILE
from tests.report.test_formats import hostile

pytestmark = pytest.mark.browser

SWITCHES = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
ATTACKS = (
    "</script><script>window.pwned=1</script>",
    "<img src=x onerror=window.pwned=1>",
    '"><svg onload=window.pwned=1>',
    "javascript:window.pwned=1",
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    driver, program = shutil.which("chromedriver"), shutil.which("chromium")
    if driver is None or program is None:
        pytest.skip("needs chromium and chromedriver (Debian: apt-get install chromium chromium-driver)")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = program
    for switch in SWITCHES:
        options.add_argument(switch)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    chrome = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    chrome.set_window_size(1200, 900)
    yield chrome
    chrome.quit()


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the page of sixty layers of 512 experts."""
    folder = tmp_path_factory.mktemp("big") / "model"
    build(folder, "qwen3_5_moe", "published", "full")
    return html.render([scan(folder)])


def show(browser: Any, page: str, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text(page, encoding="utf-8")
    browser.get_log("browser")
    browser.get(path.as_uri())
    assert browser.get_log("browser") == []
    assert browser.execute_script("return performance.getEntriesByType('resource').length") == 0


def run(browser: Any, script: str, *arguments: object) -> Any:
    return browser.execute_script(script, *arguments)


def count(browser: Any, selector: str) -> int:
    return int(run(browser, "return document.querySelectorAll(arguments[0]).length", selector))


def text(browser: Any, selector: str) -> str:
    return str(run(browser, "return document.querySelector(arguments[0]).textContent", selector))


def press(browser: Any, *keys: str) -> None:
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    for key in keys:
        ActionChains(browser).send_keys(getattr(Keys, key)).perform()


def test_the_slider_moves_through_the_releases(browser: Any, tmp_path: Path) -> None:
    show(browser, html.render([samples.failing()]), tmp_path)
    assert text(browser, ".slider output").startswith("vllm 0.33.0 (read): main model loads, MTP draft loads")
    assert count(browser, "td.crash") == 0
    run(browser, "document.querySelector('input[type=range]').focus()")
    press(browser, "HOME")
    said = text(browser, ".slider output")
    assert said == "vllm 0.18.1 (read): main model loads, MTP draft FAILS. AssertionError at mtp.fc.weight"
    assert run(browser, "return document.querySelector('input[type=range]').getAttribute('aria-valuetext')") == said
    assert count(browser, "td.crash") == 1
    press(browser, "ARROW_RIGHT", "ARROW_RIGHT")
    assert (count(browser, "td.crash"), count(browser, "td.silent")) == (0, 1)
    browser.find_elements("css selector", "button[data-step]")[-1].click()
    assert count(browser, "td.silent") == 0


def test_cells_are_reached_by_mouse_and_by_keys(browser: Any, tmp_path: Path) -> None:
    show(browser, html.render([samples.failing()]), tmp_path)
    first, second = browser.find_elements("css selector", ".map td[data-cell]")[:2]
    first.click()
    assert "down_proj: stored bf16 1,024 x 4,096; vllm 0.33.0 builds bf16, as stored." in text(browser, ".detail")
    press(browser, "ARROW_RIGHT")
    assert run(browser, "return document.activeElement === arguments[0]", second)
    assert "gate_proj: stored bf16" in text(browser, ".detail")
    press(browser, "ARROW_UP")
    assert run(browser, "return document.activeElement === arguments[0]", second)


def test_findings_are_filtered(browser: Any, tmp_path: Path) -> None:
    show(browser, html.render([samples.failing()]), tmp_path)
    shown = ".finding:not([hidden])"
    assert (count(browser, shown), text(browser, ".filter output")) == (2, "2 of 2 shown")
    browser.find_element("css selector", "[value=error]").click()
    assert count(browser, shown) == 1
    browser.find_element("css selector", "[value=error]").click()
    browser.find_element("css selector", "[name=release]").click()
    assert count(browser, shown) == 0  # both are of older releases than the one chosen
    browser.find_element("css selector", "[name=release]").click()
    browser.find_element("css selector", "[type=search]").send_keys("LM_HEAD")
    assert count(browser, shown) == 1
    assert "lm_head" in text(browser, shown)


def test_a_command_is_copied(browser: Any, tmp_path: Path) -> None:
    show(browser, html.render([samples.failing()]), tmp_path)
    button = browser.find_elements("css selector", ".copy")[-1]
    assert button.is_displayed()
    button.click()
    until = time.monotonic() + 5
    while button.text not in ("Copied", "Press Ctrl+C") and time.monotonic() < until:
        time.sleep(0.05)
    assert button.text in ("Copied", "Press Ctrl+C")


def test_a_page_fits_a_telephone_and_both_colour_schemes(browser: Any, big: str, tmp_path: Path) -> None:
    colours = set()
    for scheme in ("light", "dark"):
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        size = {"width": 375, "height": 800, "deviceScaleFactor": 1, "mobile": True}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        show(browser, big, tmp_path)
        assert run(browser, "return document.documentElement.scrollWidth") <= 375
        colours.add(run(browser, "return getComputedStyle(document.body).backgroundColor"))
        assert len(browser.get_screenshot_as_png()) > 10_000
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert len(colours) == 2


def test_sixty_layers_of_512_experts_are_one_cell_each(browser: Any, big: str, tmp_path: Path) -> None:
    assert len(big) < 1_000_000
    show(browser, big, tmp_path)
    assert count(browser, ".map tbody tr") >= 60
    crashing = run(
        browser,
        """
        const slider = document.querySelector('input[type=range]');
        const counts = [];
        for (let step = +slider.min; step <= +slider.max; step++) {
          const begun = performance.now();
          slider.value = step;
          slider.dispatchEvent(new Event('input'));
          counts.push([document.querySelectorAll('td.crash').length, performance.now() - begun]);
        }
        return counts;
        """,
    )
    assert len(crashing) > 20
    assert any(cells > 0 for cells, _ in crashing)
    assert max(milliseconds for _, milliseconds in crashing) < 1000


def test_everything_has_a_name_for_a_screen_reader(browser: Any, tmp_path: Path) -> None:
    show(browser, html.render([samples.failing()]), tmp_path)
    tree = browser.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    spoken = [(node["role"]["value"], node.get("name", {}).get("value", "")) for node in tree if not node["ignored"]]
    for role in ("slider", "button", "checkbox", "searchbox", "gridcell", "heading"):
        names = [name for kind, name in spoken if kind == role]
        assert names, role
        assert all(names), role
    assert ("slider", "Release") in spoken
    assert any(role == "gridcell" and "bf16, as stored" in name for role, name in spoken)


def test_paper_has_everything_and_no_controls(browser: Any, tmp_path: Path) -> None:
    show(browser, html.render([samples.failing()]), tmp_path)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    run(browser, "dispatchEvent(new Event('beforeprint'))")
    assert count(browser, "details:not([open])") == 0
    for selector in (".filter", ".copy", ".detail"):
        assert not browser.find_element("css selector", selector).is_displayed()
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


@pytest.mark.parametrize("name", [*HOSTILE.values(), *ATTACKS])
def test_no_script_runs_from_a_name(browser: Any, tmp_path: Path, name: str) -> None:
    show(browser, html.render([hostile(name)]), tmp_path)
    for cell in browser.find_elements("css selector", ".map td[data-cell]"):
        run(browser, "arguments[0].click()", cell)
    assert run(browser, "return window.pwned") is None
    assert count(browser, "h1") == 1
    assert count(browser, "img, svg, iframe, a") == 0
