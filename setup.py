"""The settings are in pyproject.toml, except the description of the package.

A package index shows README.md outside of the repository. If REPO_URL is set
while a package is built, the links and images of the description are those of
the repository at this address.
"""

import os
import re
from pathlib import Path

from setuptools import setup


def description(text: str, repository: str) -> str:
    """Return a Markdown text with absolute links and images."""
    images = rf'\g<1>{repository}/raw/HEAD/\g<2>'
    text = re.sub(r'(!\[[^\]]*\]\()(?!https?:)([^)]+)', images, text)
    links = rf'\g<1>{repository}/blob/HEAD/\g<2>'
    return re.sub(r'((?<!!)\[[^\]]*\]\()(?!https?:|#)([^)]+)', links, text)


if __name__ == '__main__':
    readme = (Path(__file__).parent / 'README.md').read_text(encoding='utf-8')
    if os.environ.get('REPO_URL'):
        readme = description(readme, os.environ['REPO_URL'].rstrip('/'))
    setup(long_description=readme, long_description_content_type='text/markdown')
