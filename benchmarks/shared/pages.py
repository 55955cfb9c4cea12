"""The page that a report is written to."""

from pathlib import Path

from mmpsbn.files import write_atomically

BEGIN, END = '<!-- results: begin -->', '<!-- results: end -->'


def fill_page(page: Path, text: str) -> None:
    """Write a text between the two marks of a Markdown page."""
    before, rest = page.read_text().split(BEGIN)
    after = rest.split(END)[1]
    write_atomically(page, f'{before}{BEGIN}\n\n{text}{END}{after}'.encode())


def write_page(folder: Path, text: str) -> Path:
    """Write a text between the marks of README.md, or to report.md without it.

    Returns:
        Path: The page.
    """
    page = folder / 'README.md'
    if page.exists():
        fill_page(page, f'{text}\n')
    else:
        page = folder / 'report.md'
        write_atomically(page, text.encode())
    return page
