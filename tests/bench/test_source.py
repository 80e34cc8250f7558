"""YAML text -> plain data and positions: what is read, what is refused, and that nothing is ever raised."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.nodebuilder import MAX_DEPTH, MAX_PROBLEMS
from bench.problems import format_problem
from bench.source import MAX_BYTES, parse_bytes, parse_text, read


def only(text: str | bytes) -> tuple[str, str, str | None]:
    """`line:col`, message and hint of the single problem."""
    content = text.encode() if isinstance(text, str) else text
    (problem,) = parse_bytes(content, "s.yaml").problems
    assert problem.where == f"s.yaml:{problem.line}:{problem.column}"
    return f"{problem.line}:{problem.column}", problem.message, problem.hint


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("3e-4", 3e-4),
        ("1_000_000", 1_000_000),
        ("2B", "2B"),
        ("30min", "30min"),
        ("on", "on"),
        ("no", "no"),
        ("012", 12),
        ("0o17", 15),
        ("0xff", 255),
        ("-.5", -0.5),
        ("1.", 1.0),
        ("1e3", 1000.0),
        ("12:30", "12:30"),
        ("2024-01-01", "2024-01-01"),
        ("~", None),
        ("", None),
        ("True", True),
        ("'true'", "true"),
        ('"3"', "3"),
        ("1__0", "1__0"),
        ("_1", "_1"),
        ("+7", 7),
    ],
)
def test_scalars_mean_what_a_person_thinks(written: str, value: object) -> None:
    found = parse_text(f"a: {written}\n", "s.yaml")
    assert found.problems == ()
    assert found.data() == {"a": value}
    assert type(found.data()["a"]) is type(value)


def test_a_value_that_was_left_empty_is_marked_at_its_key() -> None:
    """Not at whatever stands next, lines below."""
    found = parse_text("a:\n\n# text\nb:\n  c:\n  d: 1\n", "s.yaml")
    assert [found.problem(path, "empty").where for path in (("a",), ("b", "c"))] == ["s.yaml:1:1", "s.yaml:5:3"]


def test_aliases_and_anchors_are_followed() -> None:
    assert parse_text("a: &x {b: [1]}\nc: *x\nd: [*x, *x]\n", "s").data()["d"] == [{"b": [1]}, {"b": [1]}]


def test_a_byte_order_mark_and_windows_lines_are_fine() -> None:
    found = parse_bytes(b"\xef\xbb\xbfa: 1\r\nb:\r\n  - 2\r\n", "s")
    assert (found.problems, found.data()) == ((), {"a": 1, "b": [2]})
    problem = found.problem(("b", 0), "wrong")
    assert (problem.line, problem.column, problem.text) == (3, 5, "  - 2")


@pytest.mark.parametrize(
    ("text", "where", "message", "hint"),
    [
        ("", "1:1", "the file is empty", "init"),
        ("# only a comment\n", "1:1", "the file is empty", "init"),
        ("- a\n- b\n", "1:1", "a suite is a mapping, got a list", "suite: NAME"),
        ("just text", "1:1", "a suite is a mapping, got 'just text'", "suite: NAME"),
        ("a: 1\na: 2\n", "2:1", "duplicate key `a`", "first given at line 1"),
        ("a: {b: 1, c: 2, b: 3}\n", "1:17", "duplicate key `b`", "line 1"),
        ("a: 1\n7: 2\n", "2:1", "keys are text, got 7", "quotes"),
        ("a: 1\n? [b]\n: 2\n", "2:3", "keys are text, got a list", "quotes"),
        ("a: &x {b: 1}\nc:\n  <<: *x\n", "3:3", "merge keys (`<<`) are not part of YAML 1.2", "change"),
        (
            "a: !!python/object/apply:os.system [ls]\n",
            "1:4",
            "tag `!!python/object/apply:os.system` is refused",
            "plain",
        ),
        ("a: !mine 1\n", "1:4", "tag `!mine` is refused", "plain"),
        ("a: .nan\n", "1:4", ".nan is not a finite number", None),
        ("a: -.inf\n", "1:4", "-.inf is not a finite number", None),
        ("a: 1e999\n", "1:4", "1e999 is too large", None),
        (f"a: {'9' * 5000}\n", "1:4", "a number of 5000 characters", None),
        ("a: 1\n---\nb: 2\n", "2:1", "a second document", "---"),
        ("a: *nowhere\n", "1:4", "alias *nowhere has no anchor before it", None),
        ("a: &x [*x]\n", "1:8", "alias *x contains itself", None),
        ("a: [1, 2\nb: 3\n", "2:2", "expected ',' or ']'", "close the `[`"),
        ("a: {b: 1\nc: 2\n", "2:2", "expected ',' or '}'", "close the `{`"),
        ("a: 'open\n", "2:1", "found unexpected end of stream", "close the quote"),
        ("a:\n\tb: 1\n", "2:1", "cannot start any token", "spaces"),
        ("a: b: c\n", "1:5", "mapping values are not allowed here", "quotes"),
        ("a: @b\n", "1:4", "cannot start any token", "quotes"),
        ("a:\n  b: 1\n c: 2\n", "3:2", "expected <block end>", "indentation"),
        ("a: \x07\n", "1:4", "control character U+0007", "remove"),
        ("a: 1\nb: x\u2028y\n", "2:5", "control character U+2028", "remove"),
        ('a: "\\0"\n', "1:4", "text holds the control character U+0000", "escape"),
        ('a: "\\ud800"\n', "1:4", "text holds the control character U+D800", "escape"),
        (b"a: 1\nb: \xc3\x28\n", "2:4", "not UTF-8: byte 0xc3", "UTF-8"),
        ("a: 1\nb: é\n".encode("latin-1"), "2:4", "not UTF-8: byte 0xe9", "UTF-8"),
        ("a: 1\n".encode("utf-16"), "1:1", "not UTF-8: byte 0xff", "UTF-8"),
        ("a: " + "[" * 40 + "]" * 40, f"1:{3 + MAX_DEPTH}", f"nested deeper than {MAX_DEPTH} levels", None),
    ],
)
def test_refused_with_its_place(text: str | bytes, where: str, message: str, hint: str | None) -> None:
    found_where, found_message, found_hint = only(text)
    assert found_where == where
    assert message in found_message
    assert (hint is None and found_hint is None) or (hint is not None and hint in (found_hint or ""))


def test_all_mistakes_of_the_text_are_reported() -> None:
    found = parse_text("a: 1\na: 2\nb: .nan\n1: x\nc: !!set {}\n", "s")
    assert [(problem.line, problem.column) for problem in found.problems] == [(2, 1), (3, 4), (4, 1), (5, 4)]


def test_an_alias_bomb_is_refused_fast() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    begin = time.perf_counter()
    (problem,) = parse_text("\n".join(lines), "s").problems
    assert "once aliases are followed" in problem.message
    assert time.perf_counter() - begin < 1


def test_a_chain_of_aliases_cannot_nest_without_end() -> None:
    lines = ["a0: &a0 [x]"] + [f"a{n}: &a{n} [*a{n - 1}]" for n in range(1, 1000)]
    (problem,) = parse_text("\n".join(lines), "s").problems
    assert "nested deeper" in problem.message


@pytest.mark.parametrize("opening", ["[", "{", "- ", "? ", "[{a: ", "!", "&a ", "'", '"', "%", "|", "# "])
def test_a_large_hostile_text_is_refused_fast(opening: str) -> None:
    begin = time.perf_counter()
    found = parse_text((opening * MAX_BYTES)[:MAX_BYTES], "s")
    assert found.problems
    assert time.perf_counter() - begin < 5


def test_a_file_that_is_too_large_is_not_parsed() -> None:
    (problem,) = parse_bytes(b"a" * (MAX_BYTES + 1), "s").problems
    assert "larger than" in problem.message


def test_reading_stops_after_many_mistakes() -> None:
    assert len(parse_text("a: 1\n" * 5000, "s").problems) == MAX_PROBLEMS


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "quick.yaml").write_text("suite: x")
    (problem,) = read(tmp_path / "quik.yaml").problems
    assert (problem.message, problem.hint) == ("no such file", "did you mean `quick.yaml`?")
    assert read(tmp_path).problems[0].message == "is a folder, not a suite"
    assert "cannot be read" in read(Path("a\0b")).problems[0].message
    assert read(tmp_path / ("x" * 300)).problems[0].message.startswith("cannot be read")


def test_a_file_that_is_not_there_is_no_other_of_the_same_ending(tmp_path: Path) -> None:
    (tmp_path / "46nochange.yaml").write_text("suite: a\n")
    (problem,) = read(tmp_path / "nothere.yaml").problems
    assert problem.hint == "there are: 46nochange.yaml"


def test_a_quote_that_was_not_closed_is_looked_for_where_it_opened() -> None:
    (problem,) = parse_text('suite: x\nabout: "Do it\nbaseline:\n  name: "a"\n', "s.yaml").problems
    assert (problem.line, problem.hint) == (4, "the quote before it opened at line 2: close it there")


def test_the_excerpt_looks_like_a_compilers() -> None:
    found = parse_text("a:\n  topk: 2\n", "s.yaml").problem(
        ("a", "topk"), "unknown key `topk`", "did you mean `top_k`?", at_key=True
    )
    assert format_problem(found).splitlines() == [
        "s.yaml:2:3: error: unknown key `topk`",
        "    2 |   topk: 2",
        "      |   ^^^^",
        "  hint: did you mean `top_k`?",
    ]


def test_a_long_line_is_cut_around_the_caret() -> None:
    line = "a: [" + "1, " * 400 + "wrong]"
    shown = format_problem(parse_text(line, "s").problem(("a", 400), "no"))
    excerpt, caret = shown.splitlines()[1:3]
    assert len(excerpt) < 200
    assert excerpt[caret.index("^") :].startswith("wrong")


def test_terminal_escapes_in_a_suite_do_not_reach_the_terminal() -> None:
    found = parse_text('a: "\\e[2J"\n', "\x1b[31m.yaml")
    assert "\x1b" not in format_problem(found.problems[0])


@given(st.text(max_size=300))
@settings(max_examples=300, deadline=None)
def test_no_text_raises(text: str) -> None:
    content = text.encode("utf-8", "surrogatepass")
    for problem in parse_bytes(content, "s").problems:
        assert format_problem(problem)


@given(st.binary(max_size=200))
@settings(max_examples=200, deadline=None)
def test_no_bytes_raise(content: bytes) -> None:
    found = parse_bytes(content, "s")
    assert (found.root is None) <= bool(found.problems)


def test_no_scramble_of_yaml_raises() -> None:
    """Random strings of YAML's own signs reach deeper into the scanner than random text."""
    signs = [
        *"{}[]:,-?&*!|>'\"%@`#~ \n\t\\",
        "a",
        "1",
        ": ",
        "- ",
        "? ",
        "---\n",
        "...",
        "<<: ",
        '"\\x',
        "%YAML 1.1\n",
        "!<",
        "&a ",
        "*a",
    ]
    chosen = random.Random(0)
    for _ in range(1500):
        found = parse_text("".join(chosen.choices(signs, k=chosen.randrange(1, 25))), "s")
        assert found.root is not None or found.problems
