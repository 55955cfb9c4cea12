"""CSV files with the rows of each run, which are named tuples."""

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, get_type_hints

from mmpsbn.errors import InputError
from mmpsbn.files import write_atomically

from .pool import in_processes

Rows = dict[NamedTuple, list[NamedTuple]]


class Numbers(tuple):
    """A column with several numbers.

    Args:
        values (str | Iterable[float]): The numbers, or their text.
    """

    def __new__(cls, values):
        if isinstance(values, str):
            values = map(float, values.split())
        return super().__new__(cls, values)

    def __str__(self) -> str:
        return ' '.join(f'{value:g}' for value in self)


def write_rows(
    file: Path, rows: Rows, run: type[NamedTuple], row: type[NamedTuple]
) -> None:
    """Write the rows of all runs, sorted by run.

    Args:
        file (Path): The CSV file.
        rows (dict): The rows of each run.
        run (type): The class of the runs, whose fields are the first columns.
        row (type): The class of the rows, whose fields are the other columns.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator='\n')
    writer.writerow(run._fields + row._fields)
    for one in sorted(rows):
        writer.writerows([*one, *own] for own in rows[one])
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, text.getvalue().encode())


def read_rows(file: Path, run: type[NamedTuple], row: type[NamedTuple]) -> Rows:
    """Read what :func:`write_rows` has written. A missing file has no rows.

    Raises:
        InputError: If the file has other columns, or a value that does not
            belong into its column.
    """
    rows: Rows = {}
    if not file.exists():
        return rows
    types = {**get_type_hints(run), **get_type_hints(row)}
    with open(file, newline='') as lines:
        reader = csv.reader(lines)
        try:
            columns = next(reader, [])
            if columns != list(types):
                raise ValueError(f'the columns are {columns}, and not {list(types)}')
            for line in reader:
                if len(line) != len(types):
                    raise ValueError(f'it has {len(line)} values')
                values = [of(text) for of, text in zip(types.values(), line)]
                first = run(*values[: len(run._fields)])
                rows.setdefault(first, []).append(row(*values[len(run._fields) :]))
        except (ValueError, csv.Error) as error:
            raise InputError(
                f'line {reader.line_num} of {file} is not a result of this '
                f'study: {error}. Restore the committed file, or choose '
                'another folder with --results.'
            ) from error
    return rows


def add_rows(
    file: Path, run: NamedTuple, rows: Sequence[NamedTuple], row: type[NamedTuple]
) -> Rows:
    """Add the rows of a run to a file, in place of earlier ones.

    Args:
        file (Path): The CSV file. Rows that another command has added before
            stay; two commands must not write at the same time.
        run (NamedTuple): The run.
        rows (list[NamedTuple]): Its rows.
        row (type): The class of the rows.

    Returns:
        dict: The rows of all runs.
    """
    found = read_rows(file, type(run), row)
    found[run] = list(rows)
    write_rows(file, found, type(run), row)
    return found


def add_missing(
    file: Path,
    function: Callable[[NamedTuple], NamedTuple],
    runs: Sequence[NamedTuple],
    row: type[NamedTuple],
    processes: int,
) -> Iterator[tuple[NamedTuple, NamedTuple]]:
    """Iterate over runs with one row each, and add their rows as they end.

    Args:
        file (Path): The CSV file. Runs that have a row there are left out.
        function (callable): Computes the row of a run.
        runs (list[NamedTuple]): All runs, of one class.
        row (type): The class of the rows.
        processes (int): The number of runs in parallel.
    """
    known = read_rows(file, type(runs[0]), row) if runs else {}
    missing = [run for run in runs if run not in known]
    for run, found in in_processes([(function, missing)], processes):
        add_rows(file, run, [found], row)
        yield run, found
