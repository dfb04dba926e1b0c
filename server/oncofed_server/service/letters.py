"""Large letters for a terminal, five lines high, so that a word can be read from across a room."""

from __future__ import annotations

__all__ = ["HEIGHT", "WIDTH", "large"]

HEIGHT, WIDTH = 5, 4
"""Lines of a letter, and columns with the gap behind it."""
# Each letter is five rows of three pixels.
_PIXELS = {
    "A": "010 101 111 101 101", "B": "110 101 110 101 110", "C": "011 100 100 100 011", "D": "110 101 101 101 110",
    "E": "111 100 110 100 111", "F": "111 100 110 100 100", "G": "011 100 101 101 011", "H": "101 101 111 101 101",
    "I": "111 010 010 010 111", "J": "001 001 001 101 010", "K": "101 101 110 101 101", "L": "100 100 100 100 111",
    "M": "101 111 111 101 101", "N": "110 101 101 101 101", "O": "010 101 101 101 010", "P": "110 101 110 100 100",
    "Q": "010 101 101 111 011", "R": "110 101 110 101 101", "S": "011 100 010 001 110", "T": "111 010 010 010 010",
    "U": "101 101 101 101 111", "V": "101 101 101 101 010", "W": "101 101 111 111 101", "X": "101 101 010 101 101",
    "Y": "101 101 010 010 010", "Z": "111 001 010 100 111",
    "0": "111 101 101 101 111", "1": "010 110 010 010 111", "2": "110 001 010 100 111", "3": "110 001 010 001 110",
    "4": "101 101 111 001 001", "5": "111 100 110 001 110", "6": "011 100 110 101 010", "7": "111 001 010 010 010",
    "8": "010 101 010 101 010", "9": "010 101 011 001 110",
    "/": "001 001 010 100 100", " ": "000 000 000 000 000", "?": "110 001 010 000 010",
}  # fmt: skip


def large(text: str, *, width: int, ink: str = "\u2588") -> list[str]:
    """A text in large letters; what does not fit into the width is left out, word by word.

    Args:
        text: letters, digits, blanks and slashes; capitals are made of small letters, and of anything else a question mark.
        width: columns that there are.
        ink: one character.

    Returns:
        `HEIGHT` lines, none longer than `width`; none where not even the first word fits.
    """
    words = text.upper().split()
    while words and WIDTH * len(" ".join(words)) > width:
        words.pop()
    shown = [_PIXELS.get(c, _PIXELS["?"]).split() for c in " ".join(words)]
    if not shown:
        return []
    pixels = ("".join(f"{letter[row]}0" for letter in shown) for row in range(HEIGHT))
    return [line.replace("1", ink).replace("0", " ").rstrip() for line in pixels]
