"""Names that try to do more than be read."""

from __future__ import annotations

HOSTILE = {
    "colour": "\x1b[31mred\x1b[0m",
    "link": "\x1b]8;;http://example.org\x1b\\click\x1b]8;;\x1b\\",
    "title": "\x1b]0;owned\x07",
    "clear": "\x1b[2J\x1b[H",
    "markup": "[bold red]loads[/bold red][link=http://example.org]x[/link]",
    "unbalanced": "a[/b]c",
    "bidirectional": "weight\u202egnp.fc\u2066",
    "lines": "one\ntwo\rthree\u2028four",
    "control": "nul\x00 back\x08 del\x7f c1\x9b31m",
    "invisible": "zero\u200bwidth\u200f\ufeff\u00ad",
    "long": "x" * 100_000,
    "placeholders": "%s {0} {} {name} :warning: $(id) `id` ##[error]x ::error::y <b>@all</b>",
}
