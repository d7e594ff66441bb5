"""The page in a browser: sorts, filters, opens details, asks nothing of the network, is readable and reachable by keyboard."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

# Relative luminance and contrast by WCAG 2.1; the background of an element is the nearest one that is painted.
CONTRAST = """
const channel = c => { c /= 255; return c <= .03928 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4; };
const luminance = ([r, g, b]) => .2126 * channel(r) + .7152 * channel(g) + .0722 * channel(b);
const colour = text => text.match(/[\\d.]+/g).map(Number);
const behind = element => {
  for (let at = element; at; at = at.parentElement) {
    const found = colour(getComputedStyle(at).backgroundColor);
    if (found.length === 3 || found[3] === 1) return found;
  }
  return [255, 255, 255];
};
const low = [];
for (const element of document.querySelectorAll("body *")) {
  const text = [...element.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
  if (!text || !element.checkVisibility() || ["SCRIPT", "STYLE"].includes(element.tagName)) continue;
  const [a, b] = [luminance(colour(getComputedStyle(element).color)), luminance(behind(element))];
  const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
  if (ratio < 4.5) low.push([element.outerHTML.slice(0, 80), ratio]);
}
return low;
"""
NAMELESS = """
const name = element => element.getAttribute("aria-label") || element.innerText?.trim()
  || element.labels?.[0]?.innerText.trim() || document.getElementById(element.getAttribute("aria-labelledby"))?.innerText;
return [...document.querySelectorAll("button, a, select, input, [role=region], [role=search]")]
  .filter(element => element.checkVisibility() && !name(element)).map(element => element.outerHTML.slice(0, 80));
"""


@pytest.fixture
def page(browser: Any, built: Path) -> Any:
    browser.set_window_size(1300, 1000)
    browser.get_log("performance")
    browser.get_log("browser")
    browser.get((built / "index.html").as_uri())
    return browser


def js(page: Any, code: str, *arguments: Any) -> Any:
    return page.execute_script(code, *arguments)


def names(page: Any, selector: str = ".results") -> list[str]:
    """The rows of the first such table, as they stand, without those that are filtered out."""
    return js(
        page,
        "return [...document.querySelector(arguments[0]).tBodies[0].rows].filter(row => row.dataset.method && !row.hidden)"
        ".map(row => row.dataset.method)",
        selector,
    )


def click_heading(page: Any, text: str, table: str = ".results") -> str:
    """Click a heading of the first such table; the order it then states."""
    return js(
        page,
        "const button = [...document.querySelector(arguments[0]).querySelectorAll('.sort')].find(b => b.innerText === arguments[1]);"
        "button.click(); return button.closest('th').getAttribute('aria-sort')",
        table,
        text,
    )


def values(page: Any, column: int) -> list[float]:
    return js(
        page,
        "return [...document.querySelector('.results').querySelectorAll('.entry')].map(row => +row.cells[arguments[0]].dataset.v)",
        column,
    )


def test_no_error_and_no_request(page: Any, built: Path) -> None:
    js(page, "document.querySelectorAll('.sort, .more, #theme, summary').forEach(element => element.click())")
    assert page.get_log("browser") == []
    asked = [
        message["params"]["request"]["url"]
        for message in (json.loads(entry["message"])["message"] for entry in page.get_log("performance"))
        if message["method"] == "Network.requestWillBeSent"
    ]
    assert set(asked) == {(built / "index.html").as_uri()}


def test_headings_sort(page: Any) -> None:
    by_rank = names(page)
    assert click_heading(page, "AUPRC") == "descending"
    assert values(page, 2) == sorted(values(page, 2), reverse=True)
    assert click_heading(page, "AUPRC") == "ascending"
    assert values(page, 2) == sorted(values(page, 2))
    assert click_heading(page, "Method") == "ascending"
    assert names(page) == sorted(names(page))
    assert click_heading(page, "False-alarm slices ↓") == "ascending"  # less is better
    assert js(page, "return document.querySelectorAll('.results')[0].querySelectorAll('[aria-sort]').length") == 1
    assert click_heading(page, "#") == "ascending"
    assert names(page) == by_rank  # methods of one rank too
    # what hangs below a row goes with it
    assert js(
        page,
        "return [...document.querySelectorAll('.results .entry')].every(row => row.nextElementSibling.id === row.id + '-d')",
    )


def test_undefined_numbers_sort_last(page: Any) -> None:
    js(page, "delete document.querySelector('.results .entry').cells[2].dataset.v")
    gone = names(page)[0]
    for _ in range(2):
        click_heading(page, "AUPRC")
        assert names(page)[-1] == gone


def choose(page: Any, field: str, value: str) -> None:
    js(
        page,
        "const field = document.getElementById(arguments[0]); field.value = arguments[1];"
        "field.dispatchEvent(new Event('input', {bubbles: true}))",
        field,
        value,
    )


def shown(page: Any) -> list[str]:
    return js(
        page,
        "return [...document.querySelectorAll('.board')].filter(b => b.checkVisibility()).map(b => b.dataset.modality)",
    )


def test_filters(page: Any) -> None:
    assert shown(page) == ["FLAIR", "T1"]
    assert js(page, "return document.getElementById('count').textContent") == "6 rows"
    choose(page, "modality", "T1")
    assert shown(page) == ["T1"]
    assert js(page, "return document.getElementById('count').textContent") == "3 of 6 rows"
    published = js(
        page,
        "return [...document.querySelectorAll('.published tbody tr')].filter(r => !r.hidden).map(r => r.dataset.modality)",
    )
    assert set(published) == {"T1"}
    choose(page, "modality", "")
    choose(page, "text", "HIST")
    assert names(page) == ["histeq"]
    assert js(page, "return document.querySelectorAll('.strata tr[data-method]:not([hidden])').length") == 2
    choose(page, "text", "nothing of this name")
    assert shown(page) == []
    assert js(page, "return document.getElementById('nothing').checkVisibility()")
    js(page, "document.querySelector('#filters button[type=reset]').click()")
    page.implicitly_wait(1)
    assert page.execute_async_script("setTimeout(arguments[0], 50)") is None
    assert shown(page) == ["FLAIR", "T1"]
    for field, value in (("protocol", "folder"), ("source", "folder"), ("preset", "tiny")):
        choose(page, field, value)
        assert shown(page) == ["FLAIR", "T1"]


def test_a_number_leads_to_the_records_of_its_seeds(page: Any, built: Path) -> None:
    choose(page, "modality", "T1")
    target = js(
        page,
        "const link = document.querySelector('.board .entry a.v'); location.hash = link.getAttribute('href'); return location.hash",
    )
    page.execute_async_script("setTimeout(arguments[0], 100)")
    row = target[1:]
    assert js(page, "return document.getElementById(arguments[0]).nextElementSibling.checkVisibility()", row)
    assert js(page, "return document.activeElement.getAttribute('aria-expanded')") == "true"
    links = js(
        page,
        "return [...document.getElementById(arguments[0]).nextElementSibling.querySelectorAll('thead a')].map(a => a.getAttribute('href'))",
        row,
    )
    assert len(links) == 2
    assert all((built / link).is_file() for link in links)
    numbers = js(
        page,
        "return [...document.getElementById(arguments[0]).nextElementSibling.querySelectorAll('td a.v')].map(a => a.getAttribute('href'))",
        row,
    )
    assert len(numbers) > 20
    assert numbers[:2] == links  # each number leads to the record at the head of its column
    assert set(numbers) == set(links)
    only = js(page, "return document.querySelectorAll('.board')[1].querySelector('.entry a.v').getAttribute('href')")
    assert (built / only).is_file()  # one seed: straight to its record


def test_details_open_and_close_by_keyboard(page: Any) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    more = page.find_element(By.CSS_SELECTOR, ".more")
    assert not js(page, "return document.querySelector('.detail').checkVisibility()")
    more.send_keys(Keys.ENTER)
    assert js(page, "return document.querySelector('.detail').checkVisibility()")
    assert more.get_attribute("aria-expanded") == "true"
    more.send_keys(Keys.SPACE)
    assert not js(page, "return document.querySelector('.detail').checkVisibility()")


def test_everything_is_reachable_by_tab(page: Any) -> None:
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    js(page, "document.querySelector('.reported').remove()")
    wanted = js(
        page,
        "return [...document.querySelectorAll('a, button, select, input, summary, [tabindex]')].filter(e => e.checkVisibility()).length",
    )
    seen = set()
    for _ in range(wanted + 5):
        ActionChains(page).send_keys(Keys.TAB).perform()
        place, ring, what = js(
            page,
            "const e = document.activeElement, s = getComputedStyle(e);"
            "return [[...document.body.querySelectorAll('*')].indexOf(e), s.outlineStyle, e.outerHTML.slice(0, 90)]",
        )
        if place >= 0:
            seen.add(place)
            assert ring != "none", what
    assert len(seen) == wanted


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_text_has_contrast(page: Any, theme: str) -> None:
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": theme}]})
    js(
        page,
        "document.querySelectorAll('.more').forEach(e => e.click()); document.querySelectorAll('details').forEach(e => e.open = true)",
    )
    background = js(page, "return getComputedStyle(document.body).backgroundColor")
    assert background == {"light": "rgb(255, 255, 255)", "dark": "rgb(18, 22, 27)"}[theme]
    assert js(page, CONTRAST) == []
    js(page, "document.getElementById('theme').click()")
    assert js(page, "return getComputedStyle(document.body).backgroundColor") != background
    assert js(page, CONTRAST) == []


def test_everything_has_a_name_and_a_place(page: Any) -> None:
    js(
        page,
        "document.querySelectorAll('.more').forEach(e => e.click()); document.querySelectorAll('details').forEach(e => e.open = true)",
    )
    # What is far below the window is laid out when it is scrolled to, and has no innerText before.
    js(page, "document.querySelectorAll('.board').forEach(board => { board.style.contentVisibility = 'visible'; })")
    assert js(page, NAMELESS) == []
    assert js(page, "return document.documentElement.lang") == "en"
    assert js(page, "return document.querySelectorAll('main, header, footer').length") == 3
    assert js(page, "return [...document.querySelectorAll('h1, h2, h3')].map(h => +h.tagName[1])")[0] == 1
    assert js(page, "return [...document.querySelectorAll('th')].filter(th => !th.scope).length") == 0
    # every cell of a body lies under a heading
    assert (
        js(
            page,
            "return [...document.querySelectorAll('table')].filter(t => { const width = row => [...row.cells].reduce((n, c) => n + c.colSpan, 0);"
            " return new Set([...t.rows].map(width)).size > 1 }).length",
        )
        == 0
    )
    expanded = js(
        page, "return [...document.querySelectorAll('[aria-controls]')].map(e => e.getAttribute('aria-controls'))"
    )
    assert all(js(page, "return !!document.getElementById(arguments[0])", target) for target in expanded)


def test_narrow_screens_scroll_tables_not_the_page(page: Any) -> None:
    page.set_window_size(500, 900)
    assert js(page, "return document.documentElement.scrollWidth <= innerWidth")


def test_the_address_holds_filters_and_order(page: Any, built: Path) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    choose(page, "modality", "FLAIR")
    choose(page, "text", "s")
    click_heading(page, "AUPRC")
    click_heading(page, "AUPRC")
    address, order = page.current_url, names(page)
    assert "modality=FLAIR" in address
    js(page, "document.querySelector('#filters button[type=reset]').click()")
    page.execute_async_script("setTimeout(arguments[0], 50)")
    assert page.current_url == (built / "index.html").as_uri()
    page.get(address)
    WebDriverWait(page, 10).until(lambda _: shown(page) == ["FLAIR"])  # a busy machine shows it a moment later
    assert names(page) == order
    assert values(page, 2) == sorted(values(page, 2))
    page.get((built / "index.html").as_uri() + "?sort=x~y~z&open=e-none&open=filters")  # of nothing that is there
    assert shown(page) == ["FLAIR", "T1"]
    assert page.get_log("browser") == []


def test_the_address_holds_every_sorted_table_and_opened_row(page: Any) -> None:
    click_heading(page, "Method")
    click_heading(page, "Modality", "#published")
    click_heading(page, "Method", "#published")
    js(page, "document.querySelectorAll('.more')[1].click(); document.querySelectorAll('.more')[4].click()")
    js(page, "document.querySelectorAll('.more')[4].click()")
    opened = "return [...document.querySelectorAll('.detail.open')].map(row => row.id)"
    order, published, rows = names(page), names(page, "#published"), js(page, opened)
    assert len(rows) == 1
    page.get(page.current_url)
    assert (names(page), names(page, "#published"), js(page, opened)) == (order, published, rows)
    assert js(page, "return document.querySelectorAll('.detail.open .numbers table').length") == 1


def test_a_filter_that_the_page_no_longer_has_is_said(page: Any, built: Path) -> None:
    page.get((built / "index.html").as_uri() + "?protocol=gone&modality=FLAIR")
    assert shown(page) == []
    assert "No rows for protocol=gone" in js(page, "return document.getElementById('nothing').innerText")
    assert "protocol=gone" in page.current_url
    choose(page, "protocol", "")
    assert shown(page) == ["FLAIR"]


@pytest.mark.parametrize(
    ("clipboard", "says"),
    [
        ("{writeText: async text => { window.took = text; }}", "Copied"),
        ("{writeText: async () => { throw new Error('no'); }}", "Not copied: take the address above"),
        ("undefined", "Not copied: take the address above"),
    ],
)
def test_copied_is_said_where_it_is_true(page: Any, clipboard: str, says: str) -> None:
    js(page, f"Object.defineProperty(navigator, 'clipboard', {{value: {clipboard}, configurable: true}})")
    js(page, "document.getElementById('link').click()")
    page.execute_async_script("setTimeout(arguments[0], 50)")
    assert js(page, "return document.getElementById('link').innerText") == says
    assert js(page, "return window.took ?? null") == (page.current_url if says == "Copied" else None)


def test_a_phone_shows_the_interval_and_says_where_a_table_scrolls(page: Any) -> None:
    page.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 390, "height": 900, "deviceScaleFactor": 1, "mobile": True}
    )
    try:
        js(page, "document.querySelector('.results').scrollIntoView()")
        page.execute_async_script("setTimeout(arguments[0], 100)")
        right, hint = js(
            page,
            "const box = document.querySelector('.results').closest('.scroll');"
            "return [box.querySelector('.head-line .ci').getBoundingClientRect().right, box.previousElementSibling.checkVisibility()]",
        )
        assert right <= 390
        assert hint
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_parameters_and_seeds_open_as_tables(page: Any) -> None:
    js(page, "document.querySelector('.more').click()")
    heading, values = js(
        page,
        "const box = document.querySelector('.detail .params'); return [box.querySelector('summary').innerText, "
        "[...box.querySelector('table').tBodies[0].rows].map(row => [...row.cells].map(cell => cell.textContent))]",
    )
    assert heading == f"{len(values)} parameter{'s' * (len(values) != 1)}"
    assert dict(values)["sigma"] == "3.0"


def download(page: Any, kind: str) -> str:
    """What a button of the first board would save."""
    return js(
        page,
        "let saved = ''; const click = HTMLAnchorElement.prototype.click;"
        "HTMLAnchorElement.prototype.click = function () { saved = this.href; };"
        "document.querySelector(`[data-take=${arguments[0]}]`).click();"
        "HTMLAnchorElement.prototype.click = click; return decodeURIComponent(saved.split(',').slice(1).join(','))",
        kind,
    )


def test_csv_and_bibtex_of_the_rows_shown(page: Any) -> None:
    rows = list(csv.DictReader(io.StringIO(download(page, "csv"))))
    assert [row["method"].partition(" ")[0] for row in rows] == names(page)
    assert [float(row["AUPRC"]) for row in rows] == values(page, 2)
    assert all(float(row["AUPRC low"]) <= float(row["AUPRC"]) <= float(row["AUPRC high"]) for row in rows)
    assert all(float(row["compute, hours of one seed"]) > 0 and row["device"] == "CPU" for row in rows)
    assert {(row["seeds"], row["scored from maps"], row["submitter"]) for row in rows} == {("2", "no", "")}
    assert all(row["date"][:2] == "20" and 0 < float(row["prevalence"]) < 1 for row in rows)
    choose(page, "text", "histeq")
    assert len(list(csv.DictReader(io.StringIO(download(page, "csv"))))) == 1
    bib = download(page, "bib")
    assert "author = {Meissen and others}" in bib
    assert "eprint = {2109.06023}" in bib
    assert bib.count("@misc{") == 2
    assert f"howpublished = {{\\url{{{page.current_url}}}}}" in bib
    assert "`" not in bib


def test_cost_plot_follows_the_filters(page: Any) -> None:
    choose(page, "text", "zscore")
    marks = js(
        page,
        "return [...document.querySelectorAll('.board .cost a')].map(mark => [mark.ariaLabel, mark.hasAttribute('hidden')])",
    )
    assert {name.partition(" ")[0] for name, hidden in marks if not hidden} == {"zscore"}
    assert len(marks) == 6
