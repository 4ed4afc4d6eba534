"""The form of Chinese verse: lines of five or seven characters, and the rhyme of every second line."""

import re
from collections.abc import Sequence
from functools import cache

from data.taught.npm import dictionary
from support.json_object import JsonObject

LENGTHS = (5, 7)
MARKS = re.compile(r"[，。！？；、\s]+")
UMLAUT = re.compile(r"(?<=^[jqxy])u(?!:)")  # behind these u stands for u:
BEFORE_RHYME = re.compile(r"^(?:[zcs]h|[bpmfdtnlgkhjqxrzcsyw])?(?:[iuv](?=[ao]|e[in]))?")  # consonant and glide
SHORT = {"iu": "ou", "ui": "ei", "un": "en", "ve": "ie"}  # liu is spelled for liou, gui for guei, cun for cuen


def form(row: JsonObject, results: Sequence[str]) -> dict[str, float]:
    """Shares of a poem's lines: those of five or seven characters, and of every second line after the first such one
    those that rhyme with it."""
    lines = [line for line in MARKS.split(results[0].strip()) if line]
    return {"lines": _share([len(line) in LENGTHS for line in lines]), "rhyme": _share(rhymes(lines))}


def _share(right: Sequence[bool]) -> float:
    return sum(right) / len(right) if right else 0.0


def rhymes(lines: Sequence[str]) -> list[bool]:
    """Whether the fourth, sixth … line rhymes with the second, as the letters are spoken today.

    A letter that has ended a line before rhymes with nothing: to say the same again is no verse.
    """
    ends = [line[-1] for line in lines[1::2]]
    return [bool(_rhyme(ends[0]) & _rhyme(end)) and end not in ends[:at] for at, end in enumerate(ends) if at]


def _rhyme(letter: str) -> frozenset[str]:
    return _rhymes_of_letters().get(letter, frozenset())


@cache
def _rhymes_of_letters() -> dict[str, frozenset[str]]:
    """What each letter may rhyme on: the ends of its sounds in CC-CEDICT, without tones."""
    found: dict[str, set[str]] = {}
    for old, new, sounds, _ in dictionary():
        if len(old) == 1:
            for letter in {old, new}:
                found.setdefault(letter, set()).add(rhyme_of(sounds))
    return {letter: frozenset(ends) for letter, ends in found.items()}


def rhyme_of(sound: str) -> str:
    """What a sound in Pinyin rhymes on: its vowel and what comes behind, without the glide in front and the tone."""
    plain = UMLAUT.sub("v", sound.lower().rstrip("12345")).replace("u:", "v")
    end = BEFORE_RHYME.sub("", plain)
    return SHORT.get(end, "ie" if plain == "ye" else end)
