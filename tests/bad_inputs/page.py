"""What does docs/bad_inputs.md say of the cases with another answer? `python -m tests.bad_inputs.page` writes it."""

from __future__ import annotations

from pathlib import Path

from tests.bad_inputs.deviations import DEVIATIONS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "bad_inputs.md"
BEGIN = "<!-- from tests/bad_inputs/deviations.py; `python -m tests.bad_inputs.page` writes it anew -->"
END = "<!-- end -->"


def table() -> str:
    """The rows as Markdown."""
    rows = [f"| {row.case} | {row.channel} | {row.answer} | {row.why} |" for row in DEVIATIONS]
    return "\n".join(["| case | channel | our answer | why it is better |", "|---|---|---|---|", *rows])


def rendered(page: str) -> str:
    """The page with the present table."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(rendered(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
