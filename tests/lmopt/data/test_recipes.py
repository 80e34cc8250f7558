"""Corpora with a name, and the readers of their odder packages."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import pytest
from pydantic import ValidationError

from lmopt.data import books, packages
from lmopt.data.cache import SourceError
from lmopt.data.formats import Passage
from lmopt.data.recipes import RECIPES, sources_of
from lmopt.data.spec import Data


@pytest.mark.parametrize("name", RECIPES)
def test_a_name_stands_for_its_sources_and_each_can_be_read(name: str) -> None:
    data = Data.model_validate({"corpus": name})
    assert [entry.source for entry in data.corpus] == sources_of([name])
    assert all(entry.source in packages.PACKAGES for entry in data.corpus)
    assert Data.model_validate(data.model_dump(mode="json")) == data, "spelt out, it is the same"


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"no corpus is known as 'wide'; known: broad, mixed"):
        Data.model_validate({"corpus": "wide"})
    assert sources_of(["stdlib:", "deb:x"]) == ["stdlib:", "deb:x"]


def _members(monkeypatch: pytest.MonkeyPatch, files: dict[str, bytes]) -> None:
    monkeypatch.setattr(
        books,
        "deb_members",
        lambda path, prefix="", suffix="": (
            (name, data) for name, data in files.items() if name.startswith(prefix) and name.endswith(suffix)
        ),
    )


def test_sword_blocks_lose_their_markup(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = ["<verse osisID='a'/>In the <w lemma='x'>beginning</w><note>not here</note> was<br/>light.", "Second."]
    packed = [zlib.compress(block.encode()) for block in blocks]
    index = struct.pack("<III", 0, len(packed[0]), 9) + struct.pack("<III", len(packed[0]), len(packed[1]), 9)
    stem = "usr/share/sword/modules/texts/ztext/web/ot.b"
    _members(monkeypatch, {f"{stem}zs": index, f"{stem}zz": b"".join(packed), f"{stem}zv": b"?"})
    found = list(books.sword(Path("web.deb")))
    assert [passage.text for passage in found] == ["In the beginning was\nlight.", "Second."]
    assert {passage.domain for passage in found} == {"religion"}
    _members(monkeypatch, {f"{stem}zs": index, f"{stem}zz": b"damaged" * 20})
    with pytest.raises(SourceError, match=r"web\.deb.*damaged"):
        list(books.sword(Path("web.deb")))


def _r_vector(lines: list[str]) -> bytes:
    strings = b"".join(struct.pack(">Ii", 0x00040009, len(line.encode())) + line.encode() for line in lines)
    return b"X\n\0\0\0\3" + struct.pack(">Ii", 16, len(lines)) + strings


def test_r_vectors_are_read_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    book, title = [f"line {n}" if n % 7 else "" for n in range(300)], ["emma"]
    chunks = (struct.pack(">I", 0) + zlib.compress(_r_vector(lines)) for lines in (title, book))
    _members(monkeypatch, {"usr/lib/R/site-library/x/data/Rdata.rdb": b"".join(chunks)})
    (found,) = books.r_texts(Path("x.deb"))
    assert found.text == "\n".join(book)
    assert found.domain == "fiction"


def test_wordnet_glosses_keep_their_words(monkeypatch: pytest.MonkeyPatch) -> None:
    line = "00001740 03 n 02 entity 0 physical_thing 0 003 ~ 00001930 n 0000 | that which is perceived  \n"
    _members(monkeypatch, {"usr/share/wordnet/data.noun": ("  1 a licence\n" + line * 30).encode()})
    found = list(books.wordnet(Path("w.deb")))
    assert found[0] == Passage(
        "usr/share/wordnet/data.noun:0",
        "\n".join(["entity, physical thing: that which is perceived"] * 25),
        "dictionary",
    )
    assert len(found) == 2


def test_pod_is_prose_without_its_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    prose = "Reading B<and I<writing>> with C<E<lt>E<gt>>, C<< $a->{b} >> or L<the text|perlop/I>,X<input> as long"
    page = f"=head1 {'h' * 90}\n\n{prose}\nas it has over eighty characters.\n \n print {'x' * 90}\n\nShort.\n\n=cut\n"
    _members(monkeypatch, {"usr/share/perl/5/pod/perlop.pod": page.encode()})
    (found,) = books.pod(Path("perl.deb"))
    assert found.text == ("Reading and writing with <>, $a->{b} or the text, as long as it has over eighty characters.")
