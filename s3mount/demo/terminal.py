"""What the demo looks like: colour and check marks on a terminal, plain text in a pipe."""

import os
from typing import TextIO

_BOLD, _DIM, _GREEN, _RED, _CYAN = "1", "2", "32", "31", "36"
_INDENT = "    "
_MAX_LINES = 14  # of one command's output


class Terminal:
    """Writes the story of the demo, line by line, to *stream*."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.is_interactive = stream.isatty()
        self._coloured = self.is_interactive and "NO_COLOR" not in os.environ
        unicode = (stream.encoding or "").lower().replace("-", "") == "utf8"
        self._check, self._cross = ("✓", "✗") if unicode else ("ok:", "FAILED:")

    def blank(self) -> None:
        """Leave a line empty."""
        self._write("")

    def title(self, text: str) -> None:
        """Begin a step."""
        self._write(self._paint(_BOLD, text))

    def command(self, text: str, prompt: str = "$") -> None:
        """Show what is being run."""
        for line in text.splitlines():
            self._write(f"{_INDENT}{self._paint(_CYAN, f'{prompt} {line}')}")

    def output(self, text: str) -> None:
        """Show what came out of it; the middle of a long text is left out."""
        lines = text.splitlines()
        if len(lines) > _MAX_LINES:
            half = _MAX_LINES // 2
            left_out = f"... {len(lines) - 2 * half} more lines ..."
            lines = [*lines[:half], left_out, *lines[-half:]]
        for line in lines:
            self._write(f"{_INDENT}{self._paint(_DIM, line)}")

    def passed(self, text: str) -> None:
        """Say what was checked and found right."""
        self._write(f"  {self._paint(_GREEN, self._check)} {text}")

    def failed(self, text: str) -> None:
        """Say what was checked and found wrong."""
        self._write(f"  {self._paint(_RED, f'{self._cross} {text}')}")

    def text(self, text: str) -> None:
        """Say something."""
        self._write(text)

    def _paint(self, colour: str, text: str) -> str:
        return f"\x1b[{colour}m{text}\x1b[0m" if self._coloured else text

    def _write(self, line: str) -> None:
        # Names and errors may hold what this terminal cannot show.
        encoding = self._stream.encoding or "ascii"
        safe = line.encode(encoding, "backslashreplace").decode(encoding)
        print(safe, file=self._stream, flush=True)
