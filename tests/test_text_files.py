"""Which files a text is made of, and their encodings."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from charrnn_fast.text import files as text_files
from charrnn_fast.text.files import check_encoding, find_files, read_text


@pytest.fixture(params=[1, 2, 3, 5, 1 << 22])
def block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Bytes read at a time, so that blocks end within characters."""
    size: int = request.param
    monkeypatch.setattr(text_files, "BLOCK", size)
    return size


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with files in folders."""
    for name in (
        "b.txt",
        "B.txt",
        "a/2.txt",
        "a/10.txt",
        "a.txt",
        "a/deep/er/x.md",
        "a/.hidden",
        ".git/config",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def text_of(path: Path, encoding: str) -> str:
    return "".join(block.text for block in read_text([str(path)], encoding))


def test_a_folder_is_all_files_below_it_in_the_order_of_their_parts(tree: Path) -> None:
    below_a = ["a/10.txt", "a/2.txt", "a/deep/er/x.md"]
    assert find_files(["a"]) == below_a
    assert find_files([tree / "a"]) == [str(tree / name) for name in below_a]
    everything = [f"./{name}" for name in ["B.txt", *below_a, "a.txt", "b.txt"]]
    assert find_files(["."]) == everything
    assert find_files([".git"]) == [".git/config"]  # named itself, it is not hidden


@pytest.mark.usefixtures("tree")
def test_patterns_are_expanded() -> None:
    assert find_files(["*.txt"]) == ["B.txt", "a.txt", "b.txt"]
    assert find_files(["?.txt", "[AB].txt"]) == ["B.txt", "a.txt", "b.txt", "B.txt"]
    assert find_files(["a/**/*.md"]) == ["a/deep/er/x.md"]
    assert find_files(["**/*.txt"]) == ["B.txt", "a/10.txt", "a/2.txt", "a.txt", "b.txt"]
    # folders that match stand for what is below them, and no file comes twice
    assert find_files(["a*"]) == ["a/10.txt", "a/2.txt", "a/deep/er/x.md", "a.txt"]
    assert find_files(["a/**"]) == ["a/10.txt", "a/2.txt", "a/deep/er/x.md"]


def test_what_exists_is_no_pattern(tree: Path) -> None:
    (tree / "[ab].txt").touch()
    (tree / "what?").mkdir()
    (tree / "what?" / "file").touch()
    assert find_files(["[ab].txt"]) == ["[ab].txt"]
    assert find_files(["what?"]) == ["what?/file"]


@pytest.mark.usefixtures("tree")
def test_paths_keep_their_order_and_number() -> None:
    assert find_files(["b.txt", "a.txt", "b.txt"]) == ["b.txt", "a.txt", "b.txt"]
    assert find_files([]) == []
    assert find_files(["missing"]) == ["missing"]  # whoever opens it complains


def test_an_empty_match_is_an_error(tree: Path) -> None:
    (tree / "empty" / ".hidden").mkdir(parents=True)
    (tree / "empty" / ".hidden" / "file").touch()
    with pytest.raises(ValueError, match=r"^empty holds no files \(hidden ones are left out\)$"):
        find_files(["a.txt", "empty"])
    with pytest.raises(ValueError, match=r"^\*\.html matches no file \(hidden ones are left out"):
        find_files(["a.txt", "*.html"])


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs links and pipes")
def test_links_lead_to_files_once_and_nothing_else_is_taken(tree: Path) -> None:
    folder = tree / "links"
    folder.mkdir()
    (folder / "file").touch()
    (folder / "again").symlink_to("file")
    (folder / "other").symlink_to("../b.txt")
    (folder / "broken").symlink_to("nowhere")
    (folder / "loop").symlink_to(".")
    (folder / "b.txt").touch()
    os.mkfifo(folder / "pipe")
    assert find_files(["links"]) == ["links/again", "links/b.txt", "links/other"]
    assert find_files(["links/*e*"]) == ["links/file", "links/other"]


@pytest.mark.usefixtures("tree")
def test_a_folder_that_cannot_be_read_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulated: a superuser may read every folder."""
    scandir = os.scandir

    def refuse(path: str) -> Any:
        if path == "a/deep":
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(PermissionError, match="a/deep"):
        find_files(["a"])


@pytest.mark.usefixtures("block")
@pytest.mark.parametrize(
    "encoding",
    ["utf-8", "utf-8-sig", "UTF8", "utf-16", "utf-16-le", "utf-32", "gb18030", "utf-7"],
)
def test_a_byte_order_mark_is_left_out_of_every_file(tmp_path: Path, encoding: str) -> None:
    text = "\n漢字 and 😀\r\n\N{ZERO WIDTH NO-BREAK SPACE} within"
    path = tmp_path / "text"
    for written in (text, "\N{ZERO WIDTH NO-BREAK SPACE}" + text):
        path.write_bytes(written.encode(encoding))
        assert text_of(path, encoding) == text
    blocks = list(read_text([str(path), str(path)], encoding))
    assert "".join(block.text for block in blocks) == text * 2


def test_one_mark_only_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_bytes(b"\xef\xbb\xbf\xef\xbb\xbfa")
    assert text_of(path, "utf-8") == "\N{ZERO WIDTH NO-BREAK SPACE}a"


@pytest.mark.usefixtures("block")
@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("latin-1", "Grüße\r\n\x85"),
        ("cp1252", "„Grüße“"),
        ("shift_jis", "日本語テキスト"),
        ("euc-kr", "한국어"),
        ("iso2022_jp", "a日本語b"),
        ("koi8-r", "русский"),
        ("big5", "繁體中文"),
    ],
)
def test_encodings_that_python_knows(tmp_path: Path, encoding: str, text: str) -> None:
    path = tmp_path / "text"
    path.write_bytes(text.encode(encoding))
    assert text_of(path, encoding) == text


@pytest.mark.usefixtures("block")
@pytest.mark.parametrize(
    ("encoding", "data", "wrong"),
    [
        ("utf-8", b"abc\xff", "UTF-8 at byte 3 (0xff: invalid start byte)"),
        ("utf-8", b"\x80", "UTF-8 at byte 0 "),
        ("utf-8", "äöü".encode() + b"\xc3(", "UTF-8 at byte 6 "),
        ("utf-8", "äöü€".encode() + b"\xe2\x82", "UTF-8 at byte 9 "),  # cut off at the end
        ("utf-8", b"ok\xed\xa0\x80", "UTF-8 at byte 2 "),  # an encoded surrogate
        ("utf-8", b"\xef\xbb\xbfab\xff", "UTF-8 at byte 5 "),  # the mark's bytes count
        ("utf-16-le", "aß".encode("utf-16-le") + b"\x00\xdc", "utf-16-le at byte 4 "),
        ("utf-16", "aß".encode("utf-16") + b"x", "utf-16 at byte 6 "),
        ("utf-16", "aß".encode("utf-16-le"), "utf-16 "),  # no mark: the codec does not say where
        ("gb18030", "漢字a".encode("gb18030") + b"\xff", "gb18030 at byte 5 (0xff: "),
        ("gb18030", "漢字a".encode("gb18030") + b"\x81", "gb18030 at byte 5 (0x81: incomplete"),
        ("ascii", b"abc\xe9", "ascii at byte 3 (0xe9: ordinal not in range(128))"),
        ("cp1252", b"abc\x81", "cp1252 at byte 3 (0x81: "),
        ("utf-32", "a".encode("utf-32") + b"\0\0\x11\0", "utf-32 at byte 8 "),
    ],
)
def test_what_is_not_in_the_encoding_is_named_with_its_byte(
    tmp_path: Path, encoding: str, data: bytes, wrong: str
) -> None:
    good, bad = tmp_path / "good", tmp_path / "bad"
    good.write_bytes("aaa".encode(encoding))
    bad.write_bytes(data)
    with pytest.raises(ValueError, match="a model of bytes") as error:
        list(read_text([str(good), str(bad)], encoding))
    assert str(error.value).startswith(f"{bad}: invalid {wrong}")


@pytest.mark.parametrize(
    "name", ["", "klingon", "hex", "rot13", "idna", "punycode", "undefined", "utf-8\0", "ü"]
)
def test_names_of_no_encoding_for_texts_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="encoding must be one that Python has for texts, such as"):
        check_encoding(name)


def test_an_encoding_is_a_name() -> None:
    with pytest.raises(TypeError, match="encoding must be the name of an encoding, got NoneType"):
        check_encoding(None)


def test_a_message_names_few_of_many_files(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in "abcde"]
    for path in paths:
        path.touch()
    with pytest.raises(ValueError, match=r"the text is empty: .*/a, .*/b, .*/c and 2 more$"):
        text_files.check([str(path) for path in paths])
