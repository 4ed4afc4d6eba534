"""What a token is called, also where it is a part of a character."""

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

BROKEN = "\ufffd"
PRINTED = (
    *range(0x21, 0x7F),
    *range(0xA1, 0xAD),
    *range(0xAE, 0x100),
)  # bytes that stand for themselves in GPT-2's BPE
BYTES = {chr(byte): byte for byte in PRINTED}
BYTES |= {chr(256 + n): byte for n, byte in enumerate(sorted(set(range(256)) - set(PRINTED)))}


def name(tokeniser: "PreTrainedTokenizerFast", token: int) -> str:
    """The text of one token; bytes that are no whole character are ‹E4›, an id that is none is ‹id 9›."""
    piece = tokeniser.convert_ids_to_tokens(token)
    if piece is None:
        return f"‹id {token}›"
    text = str(tokeniser.decode([token], skip_special_tokens=False))
    if BROKEN in text and (found := _bytes(piece)) is not None:
        return _told(found)
    return f" {text}" if piece.startswith("▁") and not text.startswith(" ") else text or piece


def names(tokeniser: "PreTrainedTokenizerFast", tokens: list[int]) -> list[str]:
    """The texts of tokens that follow each other. One that ends a character also has the character: ‹96›世."""
    found, pending = [], b""
    for token in tokens:
        text, begun = name(tokeniser, token), bool(pending)
        part = _bytes(tokeniser.convert_ids_to_tokens(token) or "") if "‹" in text else None
        pending = pending + part if part is not None else b""
        try:
            whole, pending = pending.decode(), b""
        except UnicodeDecodeError as error:
            whole, pending = "", pending[error.start :] if error.end == len(pending) else b""
        found.append(text.replace("›", f"›{whole[:1]}", 1) if begun else text)
    return found


def _bytes(piece: str) -> bytes | None:
    """The bytes that a piece stands for, in GPT-2's alphabet or as <0xE4>; None where it is in neither."""
    if found := re.fullmatch(r"<0x([0-9A-F]{2})>", piece):
        return bytes([int(found[1], 16)])
    return bytes(BYTES[letter] for letter in piece) if all(letter in BYTES for letter in piece) else None


def _told(found: bytes) -> str:
    """Bytes with whole characters as such, and the others in hexadecimal."""
    text = found.decode(errors="surrogateescape")  # what is no character becomes DC80 … DCFF
    return "".join(f"‹{ord(each) - 0xDC00:02X}›" if "\udc80" <= each <= "\udcff" else each for each in text)
