"""One HTML page of what is seen: style, script and data are in it, and it loads nothing."""

import base64
import hashlib
import json
import math
import re
from pathlib import Path

import numpy as np

from inference.look.seen import Guesses, Seen
from support.errors import UserError
from support.json_object import JsonObject

BEGINS = "<!doctype html>\n<!-- stagecraft look -->\n"  # how each of our pages begins
TEMPLATE = Path(__file__).with_name("page.html")
TOP = 255  # a weight is a byte, the square root of it: so also 0.001 is seen


def page(seen: Seen, texts: list[str], names: dict[int, str], title: str) -> str:
    """The page. `texts` are the tokens of the text, `names` those that are guessed.

    Nothing in a text can end the data or run: what HTML reads is escaped, and the browser is told the hash of the one
    script that may.
    """
    template = TEMPLATE.read_text(encoding="utf-8")
    script = re.findall(r"<script>(.*?)</script>", template, re.DOTALL)[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    before, after = template.replace("SCRIPT_HASH", digest).split("PAGE_DATA")
    text = json.dumps(_data(seen, texts, names, title), separators=(",", ":"))
    for letter in "<>&":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return f"{BEGINS}{before}{text}{after}"


def _data(seen: Seen, texts: list[str], names: dict[int, str], title: str) -> JsonObject:
    layers, heads, *_ = seen.attention.shape
    return {
        "title": title,
        "notes": seen.notes,
        "ahead": seen.ahead,
        "both": seen.both_sides,
        "entries": seen.entries,
        "blind": math.log(seen.entries),
        "texts": texts,
        "names": names,
        "mean": seen.mean_loss,
        "losses": [None if loss is None else _short(loss) for loss in seen.losses],
        "lens": [_guessed(each) for each in seen.lens],
        "layers": layers,
        "heads": heads,
        "attention": base64.b64encode(_packed(seen)).decode(),
    }


def _guessed(guesses: Guesses) -> list[JsonObject]:
    """Of each place: the likeliest tokens, and loss and rank of the true one, 0 where nobody knows it."""
    return [
        {"ids": ids, "odds": list(map(_short, odds)), "loss": _short(loss) if rank else 0, "rank": rank}
        for ids, odds, loss, rank in zip(
            guesses.ids.tolist(), guesses.odds.tolist(), guesses.loss.tolist(), guesses.rank.tolist(), strict=True
        )
    ]


def _packed(seen: Seen) -> bytes:
    """The weights of all heads, a byte each, layer by layer; of a row only what may be more than 0."""
    each = np.rint(np.sqrt(seen.attention) * TOP).astype(np.uint8)
    if seen.both_sides:
        return each.tobytes()
    rows, columns = np.tril_indices(len(seen.tokens))
    return each[:, :, rows, columns].tobytes()


def _short(value: float) -> float:
    return float(f"{value:.4g}")


def check_out(out: Path) -> None:
    """Whether a page may be written to `out`. Errors: `UserError` where something else is there, or no folder is."""
    if out.is_dir():
        raise UserError(f"--out {out} is a directory; give a file")
    if not out.parent.is_dir():
        raise UserError(f"--out {out}: there is no directory {out.parent}; make it, or give another")
    if out.exists():
        with open(out, "rb") as stream:
            if stream.read(len(BEGINS)) != BEGINS.encode():
                raise UserError(f"--out {out} is no page of this command; give another, it is not written over")
