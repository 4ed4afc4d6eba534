"""The page: nothing in a text ends its data, nothing is loaded, and in a browser its script draws all of it."""

import base64
import hashlib
import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from inference.look.look import look, look_into
from inference.look.page import page
from inference.look.seen import Guesses, Seen

BAD = "</script><img src=x onerror=alert(1)>"
NASTY = BAD + " <!-- \n\u2028\u202e世😀 שלום"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")

# What a reader does, and what then stands in the page; it goes behind the page's script.
ACTS = """
const noted = [];
const note = (...what) => noted.push(what.map(each => each.replace(/\\s+/g, " ").trim()).join(" / "));
const press = (target, key) => target.dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true}));
const titled = () => note(byId("which").textContent, byId("looks").textContent, byId("token").children[0].textContent);
const buttons = [...document.querySelectorAll("#heads button")];
titled();
buttons[3].click(); titled();
press(buttons[3], "ArrowUp"); titled();
press(buttons[1], "ArrowLeft"); titled();
press(buttons[0], "ArrowLeft"); titled();
byId("text").children[1].dispatchEvent(new MouseEvent("mouseover", {bubbles: true})); titled();
document.body.dispatchEvent(new MouseEvent("mouseover", {bubbles: true})); titled();
byId("lens").querySelector("tbody tr").click(); titled();
press(byId("text"), "End"); titled();
press(byId("text"), "ArrowLeft"); press(byId("gaze"), "ArrowLeft"); titled();
const box = byId("map").getBoundingClientRect();
const [clientX, clientY] = [box.left + edge + .5 * cell, box.top + edge + 2.5 * cell];
byId("map").dispatchEvent(new MouseEvent("mousemove", {bubbles: true, clientX, clientY}));
note(byId("pair").textContent);
const dots = buttons[0].firstChild.getContext("2d").getImageData(0, 0, count, count).data;
note(`${dots[0]} ${dots[4 * (count - 1)]}`);
const kept = document.createElement("pre");
kept.id = "noted", kept.textContent = JSON.stringify(noted);
document.body.append(kept);
"""


@pytest.fixture(scope="session")
def browser() -> str:
    """A Chromium that runs: Ubuntu's package is a script that asks for a snap."""
    for program in filter(None, map(shutil.which, BROWSERS)):
        if subprocess.run([program, "--version"], capture_output=True).returncode == 0:
            return program
    pytest.skip("no Chromium is installed; in Debian: apt-get install chromium fonts-dejavu-core")


def opened(path: Path, folder: Path, browser: str) -> tuple[str, list[str]]:
    """The page's elements after its script has run, and what it said on the browser's console."""
    flags = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--enable-logging=stderr")
    more = (f"--user-data-dir={folder / 'browser'}", "--virtual-time-budget=2000", "--dump-dom", path.as_uri())
    command = [browser, *flags, *more]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def small(texts: list[str], heads: int = 2) -> str:
    """A page of made-up numbers: in head h of layer l a token looks at the first one with weight (l + h + 1) / 10."""
    count = len(texts)
    attention = np.zeros((2, heads, count, count), np.float32)
    for layer, head in np.ndindex(2, heads):
        attention[layer, head] = np.eye(count) * (1 - (layer + head + 1) / 10)
        attention[layer, head, :, 0] += (layer + head + 1) / 10
    ids, odds = np.tile(np.arange(5), (count, 1)), np.full((count, 5), 0.1, np.float32)
    known = np.arange(count) < count - 1
    guesses = Guesses(ids, odds, np.where(known, 2.5, np.nan).astype(np.float32), known * 3)
    names = dict(enumerate("abcde"))
    return page(Seen(list(range(count)), attention, [guesses] * 3, 1, False, 1000), texts, names, "a </title> model")


def data_of(text: str) -> Any:
    found = re.findall(r'<script id="seen" type="application/json">(.*?)</script>', text, re.DOTALL)
    assert len(found) == 1
    return json.loads(found[0])


def test_nothing_in_a_text_ends_the_data(run: Path) -> None:
    found = look(run, NASTY[:20]).seen
    names = dict.fromkeys(range(4096), NASTY)
    text = page(found, [NASTY] * len(found.tokens), names, NASTY)
    assert data_of(text)["texts"] == [NASTY] * len(found.tokens) and data_of(text)["title"] == NASTY
    plain = page(found, [""] * len(found.tokens), dict.fromkeys(names, ""), "")
    for tag in ("<script", "</script", "<img", "<!--"):
        assert text.count(tag) == plain.count(tag), tag


def test_the_page_loads_nothing_and_runs_one_script() -> None:
    text = small(["a"])
    assert not re.findall(r"""(?:src|href)\s*=|url\(|@import|https?:""", text)
    policy = re.findall(r'content="(default-src[^"]+)"', text)[0]
    script = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy == f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"


def test_weights_are_bytes_of_the_left_half(run: Path) -> None:
    found = look(run, "the cat").seen
    data = data_of(page(found, [""] * len(found.tokens), dict.fromkeys(range(4096), ""), ""))
    packed = np.frombuffer(base64.b64decode(data["attention"]), np.uint8)
    rows, columns = np.tril_indices(len(found.tokens))
    wanted = found.attention[:, :, rows, columns]
    assert np.abs((packed / 255).reshape(wanted.shape) - np.sqrt(wanted)).max() <= 0.5 / 255 + 1e-6


def test_a_browser_shows_a_nasty_text(run: Path, tmp_path: Path, browser: str) -> None:
    values = look_into(run, NASTY[:24])
    shown, said = opened(Path(values["page"]), tmp_path, browser)
    count = len(values["tokens"])
    assert said == [] and f'data-drawn="{count}"' in shown and "<img" not in shown
    assert shown.count('role="option"') == 2 * count + 1 and shown.count("<canvas") == 2 * 2 + 1
    text = re.findall(r'<p id="text".*?</p>', shown, re.DOTALL)[0]
    words = html.unescape(re.sub(r"<[^>]+>", "", text))
    assert f"mean loss {values['mean_loss']:.4f} nats" in shown
    assert words == "".join(token["text"] for token in values["tokens"]) + " next? "


def test_one_reads_it_with_pointer_and_keys(tmp_path: Path, browser: str) -> None:
    text = small(["<|end|>", BAD, " HENRY", "\n", "世"])
    text = re.sub(r"<meta http-equiv.*?>", "", text, flags=re.DOTALL)  # it would not let the acts run
    path = tmp_path / "page.html"
    path.write_text(text.replace("</body>", f"<script>{ACTS}</script></body>"))
    shown, said = opened(path, tmp_path, browser)
    assert said == [] and "<img" not in shown
    noted = json.loads(html.unescape(re.findall(r'<pre id="noted">(.*?)</pre>', shown)[0]))
    assert noted == [
        "Layer 1, head 1 / Where 世 (4) looks: / 世 (4)",
        "Layer 2, head 2 / Where 世 (4) looks: / 世 (4)",  # a click
        "Layer 1, head 2 / Where 世 (4) looks: / 世 (4)",  # the arrow up
        "Layer 1, head 1 / Where 世 (4) looks: / 世 (4)",
        "Layer 1, head 1 / Where 世 (4) looks: / 世 (4)",  # no head is further left
        f"Layer 1, head 1 / Where {BAD} (1) looks: / {BAD} (1)",  # the pointer
        "Layer 1, head 1 / Where 世 (4) looks: / 世 (4)",  # it has left
        "Layer 1, head 1 / Where <|end|> (0) looks: / <|end|> (0)",  # a row of the lens
        "Layer 1, head 1 / Where 世 (4) looks: / Behind the text",
        "Layer 1, head 1 / Where ↵ (3) looks: / ↵ (3)",
        "␣HENRY (2) looks at <|end|> (0): 10%",
        "6 255",  # a whole weight is the strongest colour, none is the ground
    ]
    assert "a &lt;/title&gt; model: inside</h1>" in shown and "rank 3 of 1,000" in shown
