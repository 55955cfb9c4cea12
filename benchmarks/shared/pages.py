"""The page that a report is written to."""

from collections.abc import Iterable
from pathlib import Path

from mmpsbn.files import write_atomically

BEGIN, END = '<!-- results: begin -->', '<!-- results: end -->'


def write_sections(sections: Iterable[str], folder: Path) -> Path:
    """Write the sections of a report.

    Args:
        sections (list[str]): The sections.
        folder (Path): If it has a README.md with the two marks, the report is
            written there, otherwise to report.md.

    Returns:
        Path: The page.
    """
    text = '\n'.join(sections) or 'There are no results yet.\n'
    page = folder / 'README.md'
    if page.exists() and BEGIN in page.read_text():
        before, rest = page.read_text().split(BEGIN)
        text = f'{before}{BEGIN}\n\n{text}\n{END}{rest.split(END)[1]}'
    else:
        page = folder / 'report.md'
    write_atomically(page, text.encode())
    return page
