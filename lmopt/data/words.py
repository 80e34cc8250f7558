r"""Words as the filters of the literature count them: spaCy's English rules, each distinct run of non-space cut once.

A text is split at white space; a run such as `(don't),` is cut into affixes, contractions and infixes by the algorithm
of spaCy's tokenizer (spacy.io/usage/linguistic-features#how-tokenizer-works), which datatrove's filters use. A run is
cut without regard to its neighbours, so a table from run to pieces gives the same words as cutting the whole text.
"""

from __future__ import annotations

import re
import unicodedata

from lmopt.data.contractions import openings, parts


def _letters(kind: str) -> str:
    """Members of a character class: letters of that case below U+0530, and all of the scripts without case."""
    cased = "".join(chr(c) for c in (*range(0x530), *range(0x1E00, 0x1F00)) if getattr(chr(c), kind)())
    return re.escape(cased) + "\u0591-\u05f4\u0620-\u064a\u0900-\u1cff\u3040-\u30ff\u4e00-\u9fff\uac00-\ud7af"


_LOWER, _UPPER = _letters("islower"), _letters("isupper")
_LETTER = r"[^\W\d_]"
_PUNCT = r"…|……|,|:|;|!|\?|¿|؟|¡|\(|\)|\[|\]|\{|\}|<|>|_|#|\*|&|。|？|！|，|、|；|：|～|·|।|،|۔|؛|٪"
_QUOTES = "'\"”“`‘´’‚,„»«「」『』（）〔〕【】《》〈〉⟦⟧"
_CURRENCY = r"\$|£|€|¥|฿|US\$|C\$|A\$|[\u20a0-\u20bf]"
_UNITS = (
    "km|km²|km³|m|m²|m³|dm|dm²|dm³|cm|cm²|cm³|mm|mm²|mm³|ha|µm|nm|yd|in|ft|kg|g|mg|µg|t|lb|oz|m/s|km/h|kmh|mph|hPa|Pa|"
    "mbar|mb|MB|kb|KB|gb|GB|tb|TB|T|G|M|K|%|км|м|см|мм|кг|г|мг"
)
_ICON = (
    "[\u00a6\u00a9\u00ae\u00b0\u0482\u2100-\u2106\u2116\u2117\u211e-\u2123\u2195-\u21cd\u21d5-\u21f3\u2300-\u23ff"
    "\u2400-\u244a\u249c-\u24e9\u2500-\u25b6\u25b8-\u25c0\u25c2-\u25f7\u2600-\u266e\u2670-\u2767\u2794-\u27bf"
    "\u2800-\u28ff\u2b00-\u2b2f\ufffc\ufffd\U0001f000-\U0001faff]"
)
_HYPHENS = "--|---|——|-|–|—|~"

_PREFIX = re.compile(rf"§|%|=|—|–|\+(?![0-9])|{_PUNCT}|\.\.+|[{_QUOTES}]|{_CURRENCY}|{_ICON}")
_SUFFIX = re.compile(
    rf"(?:{_PUNCT}|\.\.+|[{_QUOTES}]|{_ICON}|'s|'S|’s|’S|—|–|(?<=[0-9])\+|(?<=[0-9])(?:{_CURRENCY})|"
    rf"(?<=[0-9])(?:{_UNITS})|(?:(?<=[0-9{_LOWER}%²\-+{_QUOTES}])|(?<={_PUNCT.replace('|……', '')}))\.|"
    rf"(?<=[{_UPPER}][{_UPPER}])\.)\Z"
)
_INFIX = re.compile(
    rf"\.\.+|…|{_ICON}|(?<=[0-9])[+\-*^](?=[0-9-])|(?<=[{_LOWER}{_QUOTES}])\.(?=[{_UPPER}{_QUOTES}])|"
    rf"(?<={_LETTER}),(?={_LETTER})|(?:(?<={_LETTER})|(?<=[0-9]))(?:(?:{_HYPHENS})|[:<>=/])(?={_LETTER})"
)
_URL = re.compile(
    r"(?:[\w+.-]{2,}://)?(?:\S+(?::\S*)?@)?(?:(?:[A-Za-z0-9\u00a1-\uffff][A-Za-z0-9\u00a1-\uffff_-]{0,62})?"
    rf"[A-Za-z0-9\u00a1-\uffff]\.)+[{_LOWER}]{{2,63}}(?::\d{{2,5}})?(?:[/?#]\S*)?\Z"
)
_ALONE = frozenset((set(_PUNCT.replace("\\", "").split("|")) - {"…", "……"}) | set(_QUOTES))
"""Characters that are a suffix wherever they end a run, and end none that is longer."""
_MAY_END = re.compile("[0-9'’]")
"""What stands among the last characters of a run that ends in a letter and has a suffix: `5km`, `it's`."""
LONGEST_LETTERS = 5
"""Characters of the longest such suffix and of what must stand before it: `5mbar`."""
_MARKED = re.compile(r'[A-Za-z]*[a-z][,.;:!?)"]')
"""The commonest form beside plain letters; its cutting needs no search."""
LONGEST_SUFFIX = 8
"""Characters; only dots make longer ones."""
LONGEST_RUN = 1000
"""Characters; what is longer is no word of any language and is cut piecewise, so that time grows with the length."""


def cut(run: str) -> tuple[str, ...]:
    """The words of a run of non-space characters."""
    special = parts()
    if run in special:
        return special[run]
    if run.isascii() and run.isalpha():
        return (run,)
    if _MARKED.fullmatch(run):
        return (*special.get(run[:-1], (run[:-1],)), run[-1])
    if len(run) > LONGEST_RUN:
        pieces = (run[i : i + LONGEST_RUN] for i in range(0, len(run), LONGEST_RUN))
        return tuple(word for piece in pieces for word in cut(piece))
    before, middle, after = _strip_affixes(run, special)
    words = before
    if middle in special:
        words += special[middle]
    elif middle:
        words += [middle] if _is_url(middle) else _split_infixes(middle)
    return tuple(_join_faces([*words, *reversed(after)], special))


def _strip_affixes(run: str, special: dict[str, tuple[str, ...]]) -> tuple[list[str], str, list[str]]:
    """(prefixes, what is left, suffixes from the outside in)."""
    before: list[str] = []
    after: list[str] = []
    while run and run not in special:
        found = _PREFIX.match(run)
        start = found.end() if found else 0
        if start and run[start:] in special:
            before.append(run[:start])
            return before, run[start:], after
        end = start + _suffix_start(run[start:])
        tail = end < len(run)
        if tail and run[:end] in special:
            after.append(run[end:])
            return before, run[:end], after
        if start:
            before.append(run[:start])
        if tail:
            after.append(run[end:])
        if not (start or tail):
            break
        run = run[start:end]
    return before, run, after


def _suffix_start(run: str) -> int:
    """Where the suffix of a run begins; its length where it has none. Only its end is searched: runs can be long."""
    last = run[-1:]
    if last in _ALONE:
        return len(run) - 1
    letter = last.isascii() and last.isalpha()
    if (letter and not _MAY_END.search(run, max(len(run) - LONGEST_LETTERS, 0))) or (last.isascii() and last.isdigit()):
        return len(run)
    dots = len(run) - len(run.rstrip("."))
    found = _SUFFIX.search(run, max(len(run) - max(dots, LONGEST_SUFFIX), 0))
    return found.start() if found else len(run)


def _is_url(middle: str) -> bool:
    return "." in middle and _URL.match(middle) is not None


def _split_infixes(middle: str) -> list[str]:
    if middle.isascii() and middle.isalnum():
        return [middle]
    words: list[str] = []
    start = 0
    for found in _INFIX.finditer(middle):
        if found.start() == 0:
            continue
        if found.start() != start:
            words.append(middle[start : found.start()])
        words.append(found[0])
        start = found.end()
    if start < len(middle):
        words.append(middle[start:])
    return words


def _join_faces(words: list[str], special: dict[str, tuple[str, ...]]) -> list[str]:
    """Neighbours that together are a special form become it again: `hi:)` is `hi` and `:)`."""
    begins = openings()
    if begins.isdisjoint(words[:-1]):
        return words
    joined: list[str] = []
    i = 0
    while i < len(words):
        for j in range(min(i + 8, len(words)), i + 1, -1) if words[i] in begins else ():
            form = "".join(words[i:j])
            if form in special:
                joined += special[form]
                i = j
                break
        else:
            joined.append(words[i])
            i += 1
    return joined


def is_punctuation(word: str) -> bool:
    """Whether every character is of a Unicode category P."""
    return all(unicodedata.category(c)[0] == "P" for c in word)
