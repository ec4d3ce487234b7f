"""What the demo shows: plain text, with colours where a person reads it."""

import io
import os
import sys

_CYAN, _YELLOW, _GREEN, _DIM, _RESET = "\x1b[36m", "\x1b[33m", "\x1b[32m", "\x1b[2m", "\x1b[0m"
_GLYPHS = {"●": _YELLOW, "■": _GREEN}


class Terminal:
    """Standard output; every line is whole, and there at once."""

    def __init__(self) -> None:
        if isinstance(sys.stdout, io.TextIOWrapper):
            # A terminal without Chinese shows question marks.
            sys.stdout.reconfigure(errors="replace")
        # https://no-color.org
        self._colours = sys.stdout.isatty() and not os.environ.get("NO_COLOR")

    def say(self, text: str) -> None:
        """Print a text; its `#` comments stand back."""
        lines = (
            self._in(_DIM, line) if line.startswith("#") else line for line in text.splitlines()
        )
        self._print("\n".join(lines))

    def event(self, board: str, words: str) -> None:
        for glyph, colour in _GLYPHS.items():
            words = words.replace(glyph, self._in(colour, glyph))
        self._print(f"{self._in(_CYAN, f'[board {board}]')} {words}")

    def _print(self, text: str) -> None:
        try:
            print(text, flush=True)
        except OSError:
            # Nobody reads on, as behind `| head`, or the terminal is closed: the demo goes on in
            # silence until a signal ends it.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    def _in(self, colour: str, text: str) -> str:
        return f"{colour}{text}{_RESET}" if self._colours else text
