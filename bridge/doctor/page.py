"""What the reader sees."""

import os
import sys

from ..errors import Text
from ..settings import Settings
from .findings import Finding, Level

_MARKS: dict[Level, str] = {"ok": "✓", "note": "!", "failed": "✗", "skipped": "-"}
_PLAIN_MARKS: dict[Level, str] = {"ok": "ok  ", "note": "note", "failed": "FAIL", "skipped": "skip"}


class Page:
    """Standard output, in what it can show: some terminals lack the marks, or Chinese."""

    def __init__(self, settings: Settings) -> None:
        self._encoding = sys.stdout.encoding or "ascii"
        self._language = settings.language if self._shows("数据库") else "en"
        self._marks = _MARKS if self._shows("✓✗") else _PLAIN_MARKS
        self._counts = dict.fromkeys(_MARKS, 0)

    def write(self, subject: Text, finding: Finding) -> None:
        self._counts[finding.level] += 1
        mark = self._marks[finding.level]
        self._print(f"{mark} {subject.in_(self._language)}: {finding.says.in_(self._language)}")
        for line in finding.advice:
            self._print(f"{' ' * len(mark)}     {line.in_(self._language)}")

    def sum_up(self) -> None:
        failed, skipped, notes = (self._counts[level] for level in ("failed", "skipped", "note"))
        verdict = Text("桥接服务可以运行：python run.py", "The bridge can run: python run.py")
        if failed or skipped:
            verdict = Text(
                f"未通过 {failed} 项，跳过 {skipped} 项", f"{failed} failed, {skipped} skipped"
            )
        noted = Text(f"，提示 {notes} 项", f", {notes} to note") if notes else Text("", "")
        self._print("")
        self._print(verdict.in_(self._language) + noted.in_(self._language))

    def _print(self, line: str) -> None:
        try:
            print(line.encode(self._encoding, "replace").decode(self._encoding), flush=True)
        except BrokenPipeError:
            # The reader has closed the pipe (`| head`).
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    def _shows(self, text: str) -> bool:
        try:
            text.encode(self._encoding)
        except UnicodeEncodeError:
            return False
        return True
