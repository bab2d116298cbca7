"""A page's elements and how they become text. The standard library escapes every text and attribute, so that nothing
that was read from a file can become markup."""

import base64
import hashlib
import html
import re
from typing import Any
from xml.etree.ElementTree import Element, tostring


def tag(name: str, *children: Any, **attributes: Any) -> Element:
    """<name attributes>children</name>. Children are elements, texts, numbers, lists of these, or None (nothing).

    `class_` is class, and an underscore within a name is a hyphen; an attribute that is None is left out.
    """
    given = {k.rstrip("_").replace("_", "-"): str(v) for k, v in attributes.items() if v is not None}
    element = Element(name, given)
    put(element, children)
    return element


def put(element: Element, children: Any) -> None:
    """Append `children` to `element`."""
    if children is None:
        return
    if isinstance(children, Element):
        element.append(children)
    elif isinstance(children, list | tuple):
        for child in children:
            put(element, child)
    elif len(element):
        element[-1].tail = (element[-1].tail or "") + str(children)
    else:
        element.text = (element.text or "") + str(children)


def document(title: str, body: Element, style: str, script: str) -> str:
    """A whole page. Its policy lets it load nothing from anywhere and run nothing but `script`."""
    policy = f"default-src 'none'; img-src data:; style-src {_digest(style)}; script-src {_digest(script)}"
    head = [
        '<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="color-scheme" content="light dark">',
        '<link rel="icon" href="data:,">',
        f"<title>{html.escape(title)}</title>",
        f"<style>{style}</style>",
    ]
    written = tostring(body, encoding="unicode", method="html")
    parts = ["<!doctype html>", '<html lang="en">', "<head>", *head, "</head>", written, "</html>", ""]
    page = "\n".join(parts).replace("</body>", f"<script>{script}</script></body>")
    # Control characters and halves of characters, which a damaged file may hold, have no place in UTF-8 text.
    return (
        re.sub("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]", "\ufffd", page).encode("utf-8", "backslashreplace").decode("utf-8")
    )


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


# Small pieces that several sections use


def written(value: Any, digits: int = 4) -> str:
    """A number, a truth, a text or nothing as a reader wants it: 0.03081148 is 0.03081, 80353 is 80,353, None is -."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}".replace("-", "−")
    if isinstance(value, float):
        whole = value.is_integer() and abs(value) < 1e15
        return (f"{value:,.0f}" if whole else f"{value:,.{digits}g}").replace("-", "−")
    return str(value)


def facts(pairs: list[tuple[Any, Any]], class_: str = "facts") -> Element:
    """A list of names with what belongs to them; pairs without a value are left out."""
    rows = [tag("div", tag("dt", name), tag("dd", value)) for name, value in pairs if value is not None and value != ""]
    return tag("dl", rows, class_=class_)


def command(text: str) -> Element:
    return tag("pre", tag("code", text), tabindex="0")


def scrolling(table: Element, label: str) -> Element:
    """A box of its own in which a wide table scrolls, by keyboard too, so that the page does not."""
    return tag("div", table, class_="scroll", role="region", aria_label=label, tabindex="0")
