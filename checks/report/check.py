"""Opens reports in a real headless Chromium, uses their controls, and looks for what must not happen.

    cargo build -p mdpo-measure --example report_page
    python3 checks/report/check.py target/debug/examples/report_page [FOLDER FOR SCREENSHOTS]

Needs a Chromium (`apt-get install chromium`, or its path in `CHROMIUM`) and nothing else. Ends with 1 when something is wrong, with 2 when there is no Chromium.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import browser
import inputs

# Text and its ground, for every element that holds text itself; what is drawn over several grounds is not asked.
CONTRAST = """(() => {
  const parse = colour => colour.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255).map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4).reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  const ground = element => { for (let e = element; e; e = e.parentElement) { const c = parse(getComputedStyle(e).backgroundColor); if (c.length < 4 || c[3] === 1) return c; } return [255, 255, 255]; };
  const low = [];
  for (const element of document.querySelectorAll('body *:not(script):not(style)')) {
    const own = [...element.childNodes].some(node => node.nodeType === 3 && node.textContent.trim());
    const style = getComputedStyle(element);
    if (!own || !element.getClientRects().length || element.closest('.vh, .quiet, .skip, noscript')) continue;
    const ink = element instanceof SVGElement ? style.fill : style.color;
    const [a, b] = [light(parse(ink)), light(ground(element))];
    const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    if (ratio < 4.5) low.push(`${element.tagName}.${element.getAttribute('class')} ${ratio.toFixed(2)} "${element.textContent.trim().slice(0, 30)}"`);
  }
  return low;
})()"""

NAMELESS = """[...document.querySelectorAll('input, select, img, table, svg[tabindex], [role=region]')].filter(e => e.getClientRects().length && !(
  e.labels?.length || e.alt || e.caption || e.getAttribute('aria-label'))).map(e => e.outerHTML.slice(0, 120))"""

OVERFLOW = """(() => { const wide = [...document.querySelectorAll('body *')].filter(e => !e.closest('.scroll, .skip, .defs') && e.getClientRects().length && e.getBoundingClientRect().right > innerWidth + .5);
  return [document.documentElement.scrollWidth - innerWidth, wide.slice(0, 3).map(e => e.outerHTML.slice(0, 120))]; })()"""

done = []


def check(what, holds, found=""):
    if not holds:
        sys.exit(f"report-check: FAILED: {what}: {found}")
    done.append(what)


def quiet(page, path):
    """Nothing was asked of a network, and nothing was complained about."""
    own = Path(path).resolve().as_uri()
    foreign = [url for url in page.requests if url != own and not url.startswith("data:") and url != "about:blank"]
    check("no request but the page itself", not foreign, foreign)
    check("no error or warning in the console", not page.complaints, page.complaints)


def few(page, path, shots):
    page.size(1280)
    page.open(path)
    visible = lambda selector: page.ask(f"[...document.querySelectorAll({selector!r})].filter(e => e.getClientRects().length).length")
    check("every chosen metric is a curve of each run that has it", page.ask("[...document.querySelectorAll('.panel:not([hidden])')].every(p => p.querySelectorAll('.curve').length >= 1)"))
    check("answers with HTML and script stay text", page.ask("window.hacked === undefined && document.querySelectorAll('img[src=x]').length === 0 && document.body.textContent.includes('window.hacked = 1')"))
    check("a missing picture has a place that says why", visible(".missing") >= 1 and "cannot read" in page.ask("document.querySelector('.missing').textContent"))
    check("invented objects are marked by a sign and a line", page.ask("(() => { const m = document.querySelector('.answers mark.inv'); return m.textContent.includes('✗') && getComputedStyle(m).textDecorationLine === 'underline'; })()"))
    check("controls, pictures and tables have names", not page.ask(NAMELESS), page.ask(NAMELESS))
    check("ids are unique and headings in order", page.ask("(() => { const ids = [...document.querySelectorAll('[id]')].map(e => e.id), levels = [...document.querySelectorAll('h1,h2,h3,h4')].map(e => +e.tagName[1]); return new Set(ids).size === ids.length && levels.every((l, i) => i === 0 ? l === 1 : l <= levels[i - 1] + 1); })()"))
    check("table headers have a scope", page.ask("[...document.querySelectorAll('th')].every(th => th.scope)"))
    page.screenshot(shots / "desktop-light.png")
    low = page.ask(CONTRAST)
    check("text has a contrast of 4.5:1, light", not low, low[:5])

    curves = "document.querySelector('.panel[data-metric=\"loss\"]').querySelectorAll('.curve').length"
    check("two runs are two curves", page.ask(curves) == 2, page.ask(curves))
    rows = visible("table.figures tbody tr[data-owner]")
    page.click("input[data-name='1']")
    check("a click turns a run off: curves, figures and answers", page.ask(curves) == 1 and visible("table.figures tbody tr[data-owner]") < rows and visible("[data-owner='1']") == 0)
    page.click("input[data-name='1']")
    check("another click brings it back", page.ask(curves) == 2 and visible("table.figures tbody tr[data-owner]") == rows)

    cards = visible(".card")
    page.click("#only-invented")
    left = visible(".card")
    check("the gallery is filtered to invented objects", 0 < left < cards and page.ask("[...document.querySelectorAll('.card:not([hidden])')].every(c => c.querySelector('mark.inv'))"), (left, cards))
    check("and says how many are left", page.ask("document.getElementById('count').textContent").startswith(f"{left} of {cards}"))
    page.click("#only-invented")

    page.ask("document.getElementById('smooth').focus()")
    for _ in range(20):
        page.press("ArrowRight", 39)
    check("arrow keys smooth the curves and keep the raw ones", page.ask("document.querySelectorAll('.panel[data-metric=\"loss\"] .raw').length") == 2)
    page.press("Home", 36)
    page.point(".panel[data-metric='loss'] .plot svg")
    readout = page.ask("document.querySelector('.panel[data-metric=\"loss\"] .readout').textContent")
    check("pointing reads the values of a step in every panel", "step" in readout and "mdpo" in readout and page.ask("[...document.querySelectorAll('.panel:not([hidden]) .readout')].every(r => r.textContent.startsWith('step'))"), readout)
    page.screenshot(shots / "read-out.png", whole=False)
    page.ask("document.querySelector('.panel[data-metric=\"rewards/chosen\"] .plot svg').focus()")
    page.press("Home", 36)
    page.press("ArrowRight", 39)
    readout = page.ask("document.querySelector('.panel[data-metric=\"rewards/chosen\"] .readout').textContent")
    check("so do the arrow keys", readout.startswith("step 10"), readout)
    check("rewards have their zero line", visible(".panel[data-metric='rewards/chosen'] .zero") == 1)

    page.click("#choose summary")
    page.click("#choose input[data-metric='learning_rate']")
    chosen = visible(".panel[data-metric='learning_rate'] .curve")
    check("a metric is chosen", chosen == 2, chosen)
    page.click("#choose input[data-metric='learning_rate']")
    check("and taken away", visible(".panel[data-metric='learning_rate']") == 0)

    ground = "getComputedStyle(document.body).backgroundColor"
    light = page.ask(ground)
    choose = lambda value: page.ask(f"(() => {{ const t = document.getElementById('theme'); t.value = '{value}'; t.dispatchEvent(new Event('change')); }})()")
    choose("dark")
    dark = page.ask(ground)
    check("the control turns the page dark", dark != light, dark)
    choose("auto")
    page.prefers("dark")
    check("so does the system", page.ask(ground) == dark)
    low = page.ask(CONTRAST)
    check("text has a contrast of 4.5:1, dark", not low, low[:5])
    page.screenshot(shots / "desktop-dark.png")
    choose("light")
    check("and the control wins over it", page.ask(ground) == light)
    choose("auto")
    quiet(page, path)

    for scheme in ["dark", "light"]:
        page.prefers(scheme)
        page.size(360, 740, phone=True)
        page.open(path)
        over = page.ask(OVERFLOW)
        check("no part of the page is wider than a phone of 360 pixels", over[0] <= 0 and not over[1], over)
        page.screenshot(shots / f"phone-{scheme}.png")
    quiet(page, path)

    page.size(1000)
    page.open(path, script=False)
    shown = page.ask("[...document.querySelectorAll('.card, table.figures, noscript')].every(e => e.getClientRects().length) && ![...document.querySelectorAll('.js')].some(e => e.getClientRects().length)")
    check("without script figures and answers are there and dead controls are not", shown)


def long(page, path):
    page.prefers("light")
    page.size(1280)
    page.open(path)
    points = page.ask("Math.max(...[...document.querySelectorAll('.curve')].map(c => c.getAttribute('d').split(/[ML]/).length - 1))")
    check("100,000 log entries are thinned with their range", 100 < points <= 400 and page.ask("document.querySelectorAll('.band').length > 0"), points)
    check("and the page is small", Path(path).stat().st_size < 2_000_000, Path(path).stat().st_size)
    check("a name with HTML in it stays text", page.ask("document.querySelectorAll('h1 b, .chip b').length") == 0)
    quiet(page, path)


def scores(page, path):
    page.size(360, 740, phone=True)
    page.open(path)
    over = page.ask(OVERFLOW)
    check("figures alone make a page, on a phone too", over[0] <= 0 and not over[1] and page.ask("document.querySelectorAll('table.figures').length === 2 && !document.querySelector('.panel')"), over)
    quiet(page, path)


def main():
    program = browser.find()
    if not program:
        print("report-check: NOTHING WAS CHECKED: no Chromium was found; `apt-get install chromium`, or set CHROMIUM to its path")
        return 2
    writer = Path(sys.argv[1]).resolve()
    shots = Path(sys.argv[2] if len(sys.argv) > 2 else "target/report-check")
    shots.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        for name, runs in inputs.make(folder / "inputs").items():
            subprocess.run([writer, shots / f"{name}.html", *runs], check=True)
        chromium = browser.Browser(program, folder / "profile")
        try:
            few(chromium.page(), shots / "few.html", shots)
            long(chromium.page(), shots / "long.html")
            scores(chromium.page(), shots / "scores.html")
        finally:
            chromium.close()
    version = subprocess.run([program, "--version"], capture_output=True, text=True).stdout.strip()
    print(f"report-check: {len(done)} checks in {version}:")
    print("\n".join(f"  ok  {what}" for what in dict.fromkeys(done)))
    print(f"pages and screenshots are in {shots}")
    return 0


sys.exit(main())
