"""Headless Chromium, and checks of a page in it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

REQUIRED = "PATHPRUNE_REQUIRE_BROWSER"  # if set, a missing browser fails the test instead of skipping it

# Returns the number of texts, and the texts whose contrast with their background is below 4.5. The number detects a
# page without any text.
_CONTRAST = """
const rgba = value => { const n = value.match(/[\\d.]+/g).map(Number); return n.length < 4 ? [...n, 1] : n; };
const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
  .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
  .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
const behind = element => {
  for (; element; element = element.parentElement) {
    const color = rgba(getComputedStyle(element).backgroundColor);
    if (color[3] === 1) return color;
  }
  return [255, 255, 255, 1];
};
const poor = []; let seen = 0;
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
for (let node = walker.nextNode(); node; node = walker.nextNode()) {
  const element = node.parentElement;
  if (!node.data.trim() || ['title', 'desc', 'style', 'script'].includes(element.tagName.toLowerCase())) continue;
  const style = getComputedStyle(element);
  const text = rgba(element.namespaceURI.endsWith('svg') ? style.fill : style.color);
  const [low, high] = [light(text), light(behind(element))].sort((a, b) => a - b);
  const ratio = (high + 0.05) / (low + 0.05);
  seen += 1;
  if (ratio < 4.5 || text[3] < 1 || style.opacity < 1) poor.push(`${node.data.trim()}: ${ratio.toFixed(2)}`);
}
return [seen, poor];
"""

# Returns the figures without marks. Marks are the shapes in the axes, without axis, grid, legend and frame.
_EMPTY = """
return [...document.querySelectorAll('figure svg')].filter(svg => {
  const marks = [...svg.querySelectorAll('path, use, rect, image')].filter(mark => {
    const group = mark.closest('[id*="matplotlib.axis"], [id*="legend"], defs, clipPath');
    const frame = mark.closest('[id*="-patch_"]') && getComputedStyle(mark).fill === 'none';
    const box = mark.getBBox();
    return !group && !frame && (box.width > 0 || box.height > 0);
  });
  return marks.length < 1;
}).map(svg => svg.getAttribute('aria-labelledby'));
"""

# Returns pictures and figures without a description, table headers without a scope, and repeated ids.
_UNNAMED = """
return [
  ...[...document.querySelectorAll('figure svg')].filter(svg => !svg.getAttribute('aria-labelledby').split(' ')
    .every(id => document.getElementById(id)?.textContent.trim())).map(svg => 'svg ' + svg.outerHTML.slice(0, 80)),
  ...[...document.querySelectorAll('img:not([alt]), img[alt=""]')].map(() => 'picture without alt text'),
  ...[...document.querySelectorAll('th:not([scope])')].map(th => 'header without scope: ' + th.textContent),
  ...[...document.querySelectorAll('[id]')].map(e => e.id).filter((id, i, ids) => ids.indexOf(id) !== i)
    .map(id => 'id twice: ' + id),
];
"""


@contextmanager
def chromium() -> Iterator[webdriver.Chrome]:
    """Run headless Chromium; without Chromium, skip the test, or fail it if the environment requires a browser."""
    browser, driver = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
    if browser is None or driver is None:
        reason = "no chromium and chromedriver on the path (Debian: apt-get install chromium chromium-driver)"
        if os.environ.get(REQUIRED):
            pytest.fail(reason)
        pytest.skip(reason)
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    session = webdriver.Chrome(options=options, service=Service(driver))
    try:
        yield session
    finally:
        session.quit()


def show(browser: webdriver.Chrome, file: Path, *, width: int = 1100, scheme: str = "light") -> None:
    """Open a page in a window of the given width, in the light or dark scheme, with all details open."""
    size: dict[str, Any] = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    browser.get(file.resolve().as_uri())
    browser.execute_script("document.querySelectorAll('details').forEach(details => details.open = true)")


def list_problems(browser: webdriver.Chrome, file: Path) -> list[str]:
    """List the problems of a page on a wide screen and on a phone, in the light and the dark scheme."""
    problems = []
    for width, scheme in ((1100, "light"), (1100, "dark"), (360, "light"), (360, "dark")):
        show(browser, file, width=width, scheme=scheme)
        where = f"{width} px, {scheme}"
        problems += [f"{where}: {entry['message']}" for entry in browser.get_log("browser")]
        scroll_width = browser.execute_script("return document.documentElement.scrollWidth")
        if scroll_width > width:
            problems.append(f"{where}: scrolls sideways to {scroll_width} px")
        seen, poor = browser.execute_script(_CONTRAST)
        problems += [f"{where}: contrast of {text}" for text in poor]
        if not seen:
            problems.append(f"{where}: no text")
        problems += [f"{where}: nothing drawn in {name}" for name in browser.execute_script(_EMPTY)]
        problems += [f"{where}: {problem}" for problem in browser.execute_script(_UNNAMED)]
    return problems
