"""The pickle machine for what Python 2 wrote: protocols 0 and 1, and strings that are bytes."""

from __future__ import annotations

import codecs
from typing import Any

from sims_image.pickles.machine import NUMBER, RefusedError, _Machine


class _Python2(_Machine):
    """Knows the opcodes of protocols 0 and 1 too. Python 2's strings are bytes."""

    keys = (*_Machine.keys, bytes)
    oldest = 0

    def sized(self, name: str, content: memoryview) -> Any:
        value = super().sized(name, content)
        return bytes(value) if isinstance(value, memoryview) else value

    def long_line(self) -> bytes:
        """Bytes up to the next newline, however far; looking for it costs about as much as there is to read."""
        width = 2**10
        while True:
            end = bytes(self.data[self.at : self.at + width]).find(b"\n")
            if end >= 0 or self.at + width >= len(self.data):
                break
            width *= 2
        if end < 0:
            raise RefusedError(f"it is cut short: a line without an end at byte {self.at}")
        found = bytes(self.take(end))
        self.take(1)
        return found

    def op_int(self) -> None:
        text = self.line()
        self.stack.append(text == "01" if text in ("00", "01") else self.digits(text))

    def op_long(self) -> None:
        self.stack.append(self.digits(self.line().removesuffix("L")))

    def digits(self, text: str) -> int:
        if len(text) > 2 * NUMBER:
            raise RefusedError(f"it holds a number of {len(text)} digits at byte {self.at - 1}")
        return int(text)

    def op_float(self) -> None:
        self.stack.append(float(self.line()))

    def op_string(self) -> None:
        text = self.long_line()
        if len(text) < 2 or text[:1] not in b"'\"" or text[-1:] != text[:1]:
            raise RefusedError(f"a string lacks its quotes at byte {self.at - 1}")
        self.stack.append(codecs.escape_decode(text[1:-1])[0])

    def op_unicode(self) -> None:
        self.stack.append(str(self.long_line(), "raw-unicode-escape"))

    def op_short_binstring(self) -> None:
        self.stack.append(bytes(self.take(self.number("<B"))))

    def op_binstring(self) -> None:
        self.stack.append(bytes(self.take(self.number("<I"))))

    def op_put(self) -> None:
        self.memo[int(self.line())] = self.top()

    def op_get(self) -> None:
        self.stack.append(self.memo[int(self.line())])

    def op_list(self) -> None:
        self.stack.append(self.pop_mark())

    def op_dict(self) -> None:
        values = self.pop_mark()
        self.stack.append({})
        self.fill(self.stack[-1], values)


#: for `sims_image.pickles.machine.read_pickle`
PYTHON2 = _Python2
