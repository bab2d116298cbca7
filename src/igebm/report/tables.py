"""Numbers of an experiment as tables, beside the paper's where its result gives them; settings beside their defaults.

The form of a result is the experiment's own: nested names with numbers, texts and lists. It is shown as it is:
names that lead to single values make rows, groups that are alike make a table of their own. What stands under the
name "paper" (the same names with the paper's numbers, at any depth) goes beside the numbers that bear the same names.
"""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple
from xml.etree.ElementTree import Element

from .curves import sparkline
from .found import number
from .markup import facts, scrolling, tag, written

DEEPEST = 4
"""levels of names that are taken apart; what lies deeper is shown as it stands in the file"""
MISSING = object()
"""no value, where None is one that a result gives"""


class Row(NamedTuple):
    """A line of the table of single values; a group's name alone where `leaf` is false."""

    depth: int
    name: str
    value: Any = None
    paper: Any = None
    leaf: bool = True


def numbers_tables(numbers: Mapping[str, Any], heading: str, paper: Any = None) -> list[Element]:
    """`numbers` as one table of single values and one for each set of groups that are alike."""
    rows: list[Row] = []
    tables: list[Element] = []
    collect(numbers, paper, 0, heading, rows, tables)
    return ([single_values(rows, heading)] if rows else []) + tables


def collect(
    numbers: Mapping[str, Any], paper: Any, depth: int, heading: str, rows: list[Row], tables: list[Element]
) -> None:
    paper = numbers.get("paper", paper)
    theirs = dict(paper) if isinstance(paper, dict) else {}
    for key, value in numbers.items():
        if key in ("paper", "figures"):
            continue
        beside, inner = theirs.pop(key, None), f"{heading}: {spoken(key)}"
        if is_leaf(value):
            rows.append(Row(depth, key, value, value.get("paper", beside) if isinstance(value, dict) else beside))
        elif alike(value):
            tables.append(groups_table(value, spoken(key), inner, beside))
        elif is_matrix(value):
            tables.append(matrix_table(value, spoken(key), inner))
        elif isinstance(value, dict) and depth < DEEPEST:
            at = len(rows)
            collect(value, beside, depth + 1, inner, rows, tables)
            if len(rows) > at:
                rows.insert(at, Row(depth, key, leaf=False))
        else:
            rows.append(Row(depth, key, compact(value), beside))
    # What the paper has and this result has not.
    if paper is not None and not isinstance(paper, dict):
        rows.append(Row(depth, "", MISSING, paper))
    for key, value in theirs.items():
        if isinstance(value, dict) and not is_leaf(value) and depth < DEEPEST:
            rows.append(Row(depth, key, leaf=False))
            collect({}, value, depth + 1, heading, rows, tables)
        else:
            rows.append(Row(depth, key, MISSING, value if is_leaf(value) else compact(value)))


def is_leaf(value: Any) -> bool:
    """One value, one value with its error, or a list of such without names."""
    if isinstance(value, dict):
        return measure(value) is not None
    return not isinstance(value, list) or not any(isinstance(v, dict | list) for v in value)


def measure(value: dict[str, Any]) -> tuple[Any, Any] | None:
    """(value, standard error) of groups such as {"mean": 3.1, "se": 0.2, "n": 100}, which may have an interval's ends
    (low, high) as well; None of others."""
    rest = [key for key in value if key not in ("se", "low", "high", "n", "paper")]
    single = all(v is None or number(v) is not None for key, v in value.items() if key != "paper")
    return (value[rest[0]], value["se"]) if "se" in value and len(rest) == 1 and single else None


def uncertainty(value: dict[str, Any], digits: int = 2) -> str:
    """What a measure leaves open: " ± se", or the ends of its interval where it has no standard error."""
    if number(value["se"]) is not None:
        return f" ± {written(value['se'], digits)}"
    low, high = number(value.get("low")), number(value.get("high"))
    return "" if low is None or high is None else f" ({written(low, digits)} to {written(high, digits)})"


def alike(value: Any) -> bool:
    """Two groups or more of single values with a name in common: the rows of a table."""
    rows = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
    groups = [set(row) for row in rows if isinstance(row, dict) and measure(row) is None]
    if len(groups) < 2 or len(groups) < len(rows) or not set.intersection(*groups):
        return False
    return all(is_leaf(v) for row in rows for k, v in row.items() if k not in ("paper", "figures"))


def is_matrix(value: Any) -> bool:
    """Lists of numbers, equally long, that fit on a page."""
    rows = value if isinstance(value, list) else []
    if not 1 < len(rows) <= 30 or not all(isinstance(row, list) and 0 < len(row) <= 30 for row in rows):
        return False
    return len({len(row) for row in rows}) == 1 and all(number(v) is not None or v is None for row in rows for v in row)


def single_values(rows: list[Row], heading: str) -> Element:
    compared = any(row.paper is not None for row in rows)
    heads = [tag("th", name, scope="col") for name in ("", "this model", "the paper")]
    lines = []
    for row in rows:
        name = tag("th", spoken(row.name), scope="row", class_=f"in{row.depth}")
        if not row.leaf:
            lines.append(tag("tr", name, tag("td", colspan=2 if compared else 1)))
        else:
            paper = tag("td", None if row.paper is None else shown(row.paper), class_="paper") if compared else None
            lines.append(tag("tr", name, tag("td", shown(row.value)), paper))
    head = tag("thead", tag("tr", heads)) if compared else None
    caption = tag("caption", heading, class_="unseen")
    return scrolling(tag("table", caption, head, tag("tbody", lines)), heading)


def matrix_table(rows: list[list[Any]], caption: str, label: str) -> Element:
    """Rows and columns bear their numbers, from 0 as classes do."""
    heads = [tag("th", "", scope="col"), [tag("th", i, scope="col", class_="number") for i in range(len(rows[0]))]]
    lines = [tag("tr", tag("th", i, scope="row"), [cell(v) for v in row]) for i, row in enumerate(rows)]
    table = tag("table", tag("caption", caption), tag("thead", tag("tr", heads)), tag("tbody", lines), class_="groups")
    return scrolling(table, label)


def groups_table(groups: Any, caption: str, label: str, paper: Any = None) -> Element:
    """Groups that are alike: one row each. The paper's numbers stand beside the column that has the same name."""
    given = groups if isinstance(groups, dict) else {str(i): row for i, row in enumerate(groups, 1)}
    rows = {name: {k: v for k, v in row.items() if k not in ("paper", "figures")} for name, row in given.items()}
    of_all = paper if isinstance(paper, dict) else {}
    theirs = {name: row.get("paper", of_all.get(name)) for name, row in given.items()}
    theirs |= {name: value for name, value in of_all.items() if name not in rows}  # rows that only the paper has
    theirs = {name: value for name, value in theirs.items() if value is not None}
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    inner = {name: value for name, value in theirs.items() if isinstance(value, dict) and measure(value) is None}
    columns += [c for c in dict.fromkeys(c for value in inner.values() for c in value) if c not in columns]
    beside = {column for value in inner.values() for column in value}
    last = len(inner) < len(theirs)  # a number of the paper for the row as a whole
    heads = [tag("th", "", scope="col")]
    for column in columns:
        heads.append(tag("th", spoken(column), scope="col", class_="number"))
        heads += [tag("th", f"{spoken(column)}, the paper", scope="col", class_="number")] if column in beside else []
    heads += [tag("th", "the paper", scope="col", class_="number")] if last else []
    lines = []
    for name in [*rows, *(name for name in theirs if name not in rows)]:
        cells = []
        for column in columns:
            cells.append(cell(rows.get(name, {}).get(column, MISSING)))
            cells += [cell(inner.get(name, {}).get(column, MISSING), "paper")] if column in beside else []
        cells += [cell(MISSING if name in inner else theirs.get(name, MISSING), "paper")] if last else []
        lines.append(tag("tr", tag("th", spoken(name), scope="row"), cells))
    table = tag("table", tag("caption", caption), tag("thead", tag("tr", heads)), tag("tbody", lines), class_="groups")
    return scrolling(table, label)


def cell(value: Any, class_: str | None = None) -> Element:
    numeric = number(value) is not None or isinstance(value, dict)
    classes = " ".join(c for c in (class_, "number" if numeric else None) if c)
    return tag("td", shown(value), class_=classes or None)


def shown(value: Any) -> Any:
    """A value as it stands in a cell; the exact number stays in the markup."""
    if value is MISSING:
        return None
    if isinstance(value, dict):
        found = measure(value)
        if found is None:
            return compact(value)
        n = f", n {written(value['n'])}" if value.get("n") is not None else ""
        return [exact(found[0]), tag("small", f"{uncertainty(value)}{n}")]
    if isinstance(value, list):
        return listed(value)
    return exact(value)


def exact(value: Any) -> Any:
    if number(value) is None:
        return "not a number" if isinstance(value, float) and value != value else written(value)
    return tag("data", written(value), value=repr(value))


def listed(values: list[Any]) -> Any:
    """A few values in a row; many numbers as their line, ends and number."""
    if not values:
        return "none"
    if any(isinstance(v, list | dict) for v in values):
        return compact(values)
    if len(values) <= 12 or not any(number(v) is not None for v in values):
        few = values[:40]
        return ", ".join(written(v) for v in few) + (f" and {len(values) - len(few)} more" if few != values else "")
    ends = [tag("small", f"{len(values):,} values, "), exact(values[0]), " to ", exact(values[-1])]
    return [sparkline(values), *ends]


def compact(value: Any) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False)
    except RecursionError:
        text = "nested too deep to show"
    return text if len(text) <= 300 else f"{text[:300]} …"


def spoken(name: Any) -> str:
    return str(name).replace("_", " ")


def settings_list(settings: Mapping[str, Any], defaults: Mapping[str, Any] | None, source: str) -> Element:
    """All settings; those that differ from `defaults` (None: not known) are marked, and say what they differ from."""
    pairs = []
    for name, value in settings.items():
        if defaults is None or (name in defaults and defaults[name] == value):
            pairs.append((spoken(name), setting(value)))
        else:
            had = setting(defaults[name]) if name in defaults else "not a setting of it"
            pairs.append((spoken(name), [tag("mark", setting(value)), tag("small", f" {source}: ", had)]))
    return facts(pairs, "settings")


def setting(value: Any) -> Any:
    """A setting's value; an empty text, like none at all, is a dash."""
    return "–" if value is None or value == "" else compact(value) if isinstance(value, dict) else shown(value)
