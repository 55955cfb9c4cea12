"""Docstrings are written for Sphinx; the site reads Markdown."""

import re

import griffe

ROLE = re.compile(r':(?:attr|class|data|func|mod):`(~?)([\w.]+)`')
MATH = re.compile(r'\.\. math::\n((?:    .+\n)+)')


def to_markdown(text: str) -> str:
    text = MATH.sub(lambda math: f'$$\n{math[1]}$$\n', f'{text}\n')
    return ROLE.sub(_reference, text)


def _reference(role: re.Match) -> str:
    short, target = role.groups()
    shown = target.rpartition('.')[2] if short else target
    return f'<autoref optional identifier="{target}"><code>{shown}</code></autoref>'


class SphinxMarkup(griffe.Extension):
    """Turns the roles and formulas of docstrings into Markdown's."""

    def on_object(self, *, obj, **kwargs) -> None:
        if obj.docstring:
            obj.docstring.value = to_markdown(obj.docstring.value)
