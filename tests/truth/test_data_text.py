"""Tokenizers against Python's own codecs, and text from parquet, files and folders against the strings they were made of."""

import json
import sys

import pytest
import torch

from velodrome.data import digits, images, text
from velodrome.data.folder import folder
from velodrome.data.tokens import Bytes, Characters, Tokenizer, tokenizer

TALE = "Grüße, 世界! 🚲\r\n" * 20 + "The end.\n"


def rows(file, values, column="text"):
    pa = pytest.importorskip("pyarrow", reason='needs pip install "velodrome[data]"')
    pq = pytest.importorskip("pyarrow.parquet")
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"id": pa.array(range(len(values)), pa.int64()), column: pa.array(values, pa.string())}), file)
    return file


def hub(file):
    """A word-level tokenizer file made by the library itself."""
    library = pytest.importorskip("tokenizers", reason='needs pip install "velodrome[data]"')
    made = library.Tokenizer(library.models.WordLevel({"[UNK]": 0, "the": 1, "end": 2, "<|sep|>": 3}, unk_token="[UNK]"))
    made.pre_tokenizer = library.pre_tokenizers.Whitespace()
    made.add_special_tokens(["<|sep|>"])
    made.save(str(file))
    return file


def test_bytes_are_utf8_and_come_back():
    ids = Bytes().encode(TALE)
    assert ids.dtype == torch.uint8
    assert ids.tolist() == list(TALE.encode())
    assert Bytes().decode(ids) == TALE
    assert Bytes().decode(Bytes().encode("é")[:1]) == "\ufffd"
    assert Bytes().vocabulary == 256
    assert Bytes().encode("").shape == (0,)


def test_characters_are_sorted_code_points_and_come_back():
    coder = Characters.of(TALE)
    assert list(coder.alphabet) == sorted(set(TALE))
    ids = coder.encode(TALE)
    assert ids.tolist() == [coder.alphabet.index(c) for c in TALE]
    assert coder.decode(ids) == TALE
    assert coder.decode(ids.long()) == TALE


def test_a_character_that_training_text_lacks_is_the_last_id_and_decodes_to_the_replacement_character():
    coder = Characters.of("abc")
    assert coder.vocabulary == 4
    assert coder.encode("cab?é").tolist() == [2, 0, 1, 3, 3]
    assert coder.decode(coder.encode("a?b")) == "a\ufffdb"


def test_a_large_alphabet_takes_wider_ids():
    coder = Characters.of("".join(map(chr, range(0x4E00, 0x4F00))))
    assert coder.vocabulary == 257
    ids = coder.encode("\u4eff?")
    assert ids.dtype == torch.int32
    assert ids.tolist() == [255, 256]
    assert Characters.of("".join(map(chr, range(255)))).encode("\x00?\u4e00").tolist() == [0, 63, 255]


def test_vocabularies_are_identified_by_their_digests():
    assert len({Bytes().digest, Characters("abc").digest, Characters("acb").digest, Characters("ab").digest}) == 4
    for wrong in ("", "aa", "a\ufffd"):
        with pytest.raises(ValueError, match="alphabet must be"):
            Characters(wrong)


def test_a_hub_tokenizer_gives_the_librarys_ids(tmp_path):
    coder = tokenizer(hub(tmp_path / "tokenizer.json"))
    assert coder.vocabulary == 4
    assert coder.encode("the end of the").tolist() == [1, 2, 0, 1]
    assert coder.encode_all(["the", "end end", "the"], "<|sep|>").tolist() == [1, 3, 2, 2, 3, 1]
    assert coder.decode(torch.tensor([1, 2])) == "the end"
    assert all(isinstance(each, Tokenizer) for each in (coder, Bytes(), Characters("a")))


def test_a_missing_or_damaged_tokenizer_file_is_named(tmp_path):
    pytest.importorskip("tokenizers")
    (tmp_path / "bad.json").write_text(json.dumps({"model": 3}))
    for name, message in (("none.json", "no tokenizer file"), ("bad.json", "is not a Hugging Face tokenizer")):
        with pytest.raises(ValueError, match=message) as raised:
            text.load(__file__, tokens=tmp_path / name)
        assert name in str(raised.value)
    with pytest.raises(ValueError, match="tokens must be"):
        text.load(__file__, tokens="words")


def test_a_plain_file_is_read_whole_with_its_line_ends(tmp_path):
    file = tmp_path / "tale.txt"
    file.write_bytes(TALE.encode())
    found = text.load(file)
    assert found.tokenizer.decode(found.tokens) == TALE
    assert found.bytes == len(TALE.encode()) == len(found.tokens)
    assert text.load(file, tokens="characters").bytes == found.bytes
    assert text.load(file, tokens="characters").digest != found.digest


@pytest.mark.parametrize("holdout", [0.1, 0.5])
def test_a_file_without_splits_is_cut_once_and_nothing_is_lost(tmp_path, holdout):
    file = tmp_path / "tale.txt"
    file.write_bytes(TALE.encode())
    train, valid = (text.load(file, split, holdout=holdout) for split in ("train", "validation"))
    parts = [part.tokenizer.decode(part.tokens) for part in (train, valid)]
    assert "".join(parts) == TALE
    assert len(parts[0]) == int(len(TALE) * (1 - holdout))


def test_the_vocabulary_is_that_of_training_text_whichever_split_is_loaded(tmp_path):
    file = tmp_path / "tale.txt"
    file.write_bytes(TALE.encode())
    train, valid = (text.load(file, split, tokens="characters") for split in ("train", "validation"))
    assert valid.tokenizer == train.tokenizer == Characters.of(TALE[: int(len(TALE) * 0.9)])
    assert "T" not in train.tokenizer.alphabet
    assert train.tokenizer.vocabulary - 1 in valid.tokens
    assert text.load(file, "validation", tokens=train.tokenizer).digest == valid.digest


def test_a_folder_of_text_files_is_joined_in_the_order_of_paths(tmp_path):
    for name, content in {"b.txt": "two", "a.txt": "one", "c/d.txt": "three", "x.md": "no"}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    found = text.load(tmp_path, separator="\0")
    assert found.tokenizer.decode(found.tokens) == "one\0two\0three"
    assert found.bytes == 13


def test_parquet_rows_are_documents_of_their_split(tmp_path):
    rows(tmp_path / "train-00001-of-00002.parquet", ["three"])
    rows(tmp_path / "train-00000-of-00002.parquet", ["one", "", "two"])
    rows(tmp_path / "validation-00000-of-00001.parquet", ["four"])
    found = text.load(tmp_path, "train", separator="|")
    assert found.tokenizer.decode(found.tokens) == "one||two|three"
    assert len(text.load(tmp_path, "validation").tokens) == 4
    for split in (None, "test"):
        with pytest.raises(ValueError, match="splits train, validation"):
            text.load(tmp_path, split)


def test_documents_of_a_hub_tokenizer_are_joined_by_its_token(tmp_path):
    file = rows(tmp_path / "a.parquet", ["the end", "the"])
    found = text.load(file, tokens=hub(tmp_path / "tokenizer.json"), separator="<|sep|>")
    assert found.tokens.tolist() == [1, 2, 3, 1]
    assert found.bytes == len("the end<|sep|>the")


def test_a_folder_with_a_sub_folder_per_split_reads_that_split(tmp_path):
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        (tmp_path / split / "a.txt").write_text(split)
    assert text.load(tmp_path, "test").tokenizer.decode(text.load(tmp_path, "test").tokens) == "test"
    assert text.load(tmp_path, "test", tokens="characters").tokenizer == Characters.of("train")


def test_bad_rows_and_columns_are_named(tmp_path):
    file = rows(tmp_path / "a.parquet", ["one", None])
    with pytest.raises(ValueError, match=r"a\.parquet row 1: column 'text' is null"):
        text.load(file)
    with pytest.raises(ValueError, match=r"no column 'body' of strings \(it has id, text\): write column='text'"):
        text.load(file, column="body")
    with pytest.raises(ValueError, match="no column 'id' of strings"):
        text.load(file, column="id")
    plain = rows(tmp_path / "b.parquet", ["plain words"])
    plain.write_bytes(plain.read_bytes().replace(b"plain words", b"pl\xffin words"))
    with pytest.raises(ValueError, match=r"b\.parquet cannot be read and is damaged .*utf-8"):
        text.load(plain)
    file.write_bytes(file.read_bytes()[:-30])
    with pytest.raises(ValueError, match=r"a\.parquet cannot be read and is damaged"):
        text.load(file)


def test_missing_empty_and_foreign_text_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no file or folder"):
        text.load(tmp_path / "none.txt")
    with pytest.raises(ValueError, match=r"neither SPLIT-\*\.parquet nor \.txt"):
        text.load(tmp_path)
    file = tmp_path / "a.txt"
    file.write_bytes(b"")
    for tokens in ("bytes", "characters"):
        with pytest.raises(ValueError, match="holds no text"):
            text.load(tmp_path, tokens=tokens)
    file.write_bytes(b"a")
    with pytest.raises(ValueError, match="holds no text in its split 'train'"):
        text.load(file, "train")
    file.write_bytes(b"abc\xff")
    with pytest.raises(ValueError, match=r"a\.txt is not UTF-8 at byte 3"):
        text.load(file)
    with pytest.raises(ValueError, match="no splits of its own"):
        text.load(file, "test")


def test_the_shared_texts_load():
    if folder() is None or not (folder() / "shakespeare").exists() or not (folder() / "novels").exists():
        pytest.skip("needs shakespeare and novels in the data folder (VELODROME_DATA)")
    train, valid = (text.load(folder() / "shakespeare", split, tokens="characters") for split in ("train", "validation"))
    assert (len(train.tokens), len(valid.tokens)) == (1_003_854, 111_540)  # nanoGPT's cut, with the same int(0.9 n)
    assert train.tokenizer.vocabulary == 66
    assert len(text.load(folder() / "novels", "validation").tokens) > 800_000


def test_a_hidden_folder_beside_the_splits_is_not_a_split(tmp_path):
    for name in ("train", "test", ".cache"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.txt").write_text(name)
    assert text.load(tmp_path, "train").bytes == 5


@pytest.mark.parametrize(("module", "call"), [("pyarrow", "parquet"), ("tokenizers", "json"), ("PIL", "images"), ("sklearn", "digits")])
def test_a_missing_extra_says_how_to_install_it(tmp_path, monkeypatch, module, call):
    rows(tmp_path / "a.parquet", ["one"])
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "1.png").write_bytes(b"any")
    (tmp_path / "t.json").write_text("{}")
    monkeypatch.setitem(sys.modules, module, None)
    calls = {
        "parquet": lambda: text.load(tmp_path / "a.parquet"),
        "json": lambda: tokenizer(tmp_path / "t.json"),
        "images": lambda: images.load(tmp_path),
        "digits": digits.load,
    }
    if call == "images":
        (tmp_path / "a.parquet").unlink()
    with pytest.raises(ValueError, match=r'pip install "velodrome\[data\]"'):
        calls[call]()
