"""Prompt files as the tools in question write them, broken ones, and random bytes."""

from __future__ import annotations

import copy
import csv
import io
import json
import time
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from tokenizers import normalizers

from headcodes import HeadcodesError, PromptPair
from headcodes.prompts.files import parse_columns, read_pairs
from headcodes.prompts.tokens import tokenize

PAIR = PromptPair("The capital of France is", "The capital of Japan is", (" Paris",), (" Tokyo",))
ROW = {"clean": PAIR.clean, "corrupt": PAIR.corrupt, "answers": [" Paris"], "wrong_answers": [" Tokyo"]}
BOM = b"\xef\xbb\xbf"

# As EAP-IG writes its files: pandas with its index (ids of GPT-2's " Amber" and " Aaron"), and greater-than without.
EAP_IOI = (
    ",clean,corrupted,corrupted_hard,correct_idx,incorrect_idx\n"
    '470,"Then, Aaron and Amber sat. Aaron gave a drink to","Then, Aaron and Amber sat. Tiffany gave a drink to",'
    '"Then, Aaron and Amber sat. Amber gave a drink to",21183,12139\n'
)
EAP_GREATER = (
    "clean,corrupted,label\n"
    "The plan lasted from the year 1642 to the year 16,The plan lasted from the year 1601 to the year 16,42\n"
    "The effect lasted from the year 1604 to the year 16,The effect lasted from the year 1601 to the year 16,4\n"
)


def parquet(rows: list[dict[str, object]]) -> bytes:
    sink = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), sink)
    return sink.getvalue()


def years(start: int, stop: int) -> tuple[str, ...]:
    return tuple(f"{year:02d}" for year in range(start, stop))


FORMS: list[tuple[str, str, bytes, PromptPair]] = [
    ("ours", "a.json", json.dumps({"prompts": [ROW]}).encode(), PAIR),
    ("ours with a byte-order mark", "a.json", BOM + json.dumps({"prompts": [ROW]}).encode(), PAIR),
    ("a list of rows", "a.json", json.dumps([ROW]).encode(), PAIR),
    ("JSON lines", "a.jsonl", (json.dumps(ROW) + "\n\n").encode(), PAIR),
    ("JSON lines from Windows", "a.jsonl", BOM + (json.dumps(ROW) + "\r\n").encode(), PAIR),
    ("answers as a string", "a.jsonl", json.dumps(ROW | {"answers": " Paris"}).encode(), PAIR),
    (
        "a spreadsheet's CSV",
        "a.csv",
        BOM + b"prompt,counterfactual,answer,wrong\r\nThe capital of France is,The capital of Japan is,Paris,Tokyo\r\n",
        PAIR,
    ),
    (
        "a spreadsheet's CSV where a comma is the decimal sign",
        "a.csv",
        b"prompt;counterfactual;answer;wrong\r\nThe capital of France is;The capital of Japan is;Paris;Tokyo\r\n",
        PAIR,
    ),
    (
        "tabs",
        "a.tsv",
        b"clean\tcorrupt\tanswer\twrong\nThe capital of France is\tThe capital of Japan is\t Paris\t Tokyo\n",
        PAIR,
    ),
    (
        "quoted line breaks, lists in cells",
        "a.csv",
        b'clean,corrupt,answers,wrong_answers\n"a ""b""\nc","d,\ne","["" x"", "" y""]", u| v\n',
        PromptPair('a "b"\nc', "d,\ne", (" x", " y"), (" u", " v")),
    ),
    (
        "spaces at the ends of prompts",
        "a.csv",
        b"clean,corrupt,answer,wrong\nThe capital of France is ,The capital of Japan is ,Paris,Tokyo\n",
        PAIR,
    ),
    ("no wrong answers", "a.csv", b"clean,corrupt,answer\nA,B, x\n", PromptPair("A", "B", (" x",), ())),
    (
        "EAP-IG's IOI",
        "ioi.csv",
        EAP_IOI.encode(),
        PromptPair(
            "Then, Aaron and Amber sat. Aaron gave a drink to",
            "Then, Aaron and Amber sat. Tiffany gave a drink to",
            (21183,),
            (12139,),
        ),
    ),
    (
        "EAP-IG's greater-than",
        "greater_than.csv",
        EAP_GREATER.encode(),
        PromptPair(
            "The plan lasted from the year 1642 to the year 16",
            "The plan lasted from the year 1601 to the year 16",
            years(43, 100),
            years(0, 43),
        ),
    ),
    (
        "clean, corrupted, label",
        "mib.csv",
        b"clean,corrupted,label\nThe capital of France is,The capital of Japan is,Paris\n",
        PromptPair(PAIR.clean, PAIR.corrupt, (" Paris",), ()),
    ),
    ("Parquet", "a.parquet", parquet([ROW]), PAIR),
    (
        "Parquet with MIB's columns",
        "mib.parquet",
        parquet(
            [
                {
                    "prompt": PAIR.clean,
                    "choices": ["Tokyo", "Paris"],
                    "answerKey": 1,
                    "counterfactual": {"prompt": PAIR.corrupt, "answerKey": 0},
                }
            ]
        ),
        PAIR,
    ),
    (
        "Chinese takes no space",
        "a.csv",
        "clean,corrupt,answer,wrong\n法国的首都是,日本的首都是,巴黎,东京\n".encode(),
        PromptPair("法国的首都是", "日本的首都是", ("巴黎",), ("东京",)),
    ),
]


@pytest.mark.parametrize(("name", "content", "pair"), [form[1:] for form in FORMS], ids=[form[0] for form in FORMS])
def test_every_form_is_read(tmp_path: Path, name: str, content: bytes, pair: PromptPair) -> None:
    (tmp_path / name).write_bytes(content)
    pairs = read_pairs(tmp_path / name)
    assert pairs[0] == pair
    assert pairs.reading is not None
    assert pairs.reading.left_out == ()
    assert f"{len(pairs)} of {len(pairs)} rows used" in pairs.reading.as_text()


def test_a_data_set_from_a_folder(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    one = datasets.Dataset.from_list([ROW])
    one.save_to_disk(str(tmp_path / "saved"))
    datasets.DatasetDict({"train": one, "test": one}).save_to_disk(str(tmp_path / "two"))
    assert read_pairs(f"hf:{tmp_path}/saved")[0] == PAIR
    assert read_pairs(f"hf:{tmp_path}/two:test")[0] == PAIR
    with pytest.raises(HeadcodesError, match="train, test"):
        read_pairs(f"hf:{tmp_path}/two")
    with pytest.raises(HeadcodesError, match="data set hf:"):
        read_pairs(f"hf:{tmp_path}/nowhere")


def test_columns_by_name(tmp_path: Path) -> None:
    path = tmp_path / "q.csv"
    path.write_text("question,other,gold,bad\nThe capital of France is,The capital of Japan is, Paris, Tokyo\n")
    with pytest.raises(HeadcodesError, match=r"--columns clean=\.\.\.,corrupt=\.\.\.,answer=\.\.\."):
        read_pairs(path)
    columns = parse_columns("clean=question,corrupt=other, answer=gold,wrong=bad")
    assert read_pairs(path, columns=columns)[0] == PAIR
    with pytest.raises(HeadcodesError, match="'nope'"):
        read_pairs(path, columns={"clean": "nope"})
    for bad in ("clean", "x=y", "clean=", ""):
        with pytest.raises(HeadcodesError, match="roles are clean"):
            parse_columns(bad)


def test_the_kind_of_answer_can_be_chosen(tmp_path: Path) -> None:
    path = tmp_path / "both.csv"
    path.write_text("clean,corrupted,answer,correct_idx\na,b, x,7\n")
    assert read_pairs(path)[0].answers == (" x",)
    assert read_pairs(path, columns={"answer_id": "correct_idx"})[0].answers == (7,)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [("56", {"auto": "56", "yes": " 56", "no": "56"}), ("Paris", {"auto": " Paris", "no": "Paris"})],
)
def test_spaces_before_answers(tmp_path: Path, answer: str, expected: dict[str, str]) -> None:
    path = tmp_path / "a.csv"
    path.write_text(f"clean,corrupt,answer,wrong\nthe year 17,the year 18,{answer},x\n")
    for space, read in expected.items():
        pairs = read_pairs(path, leading_space=space)  # type: ignore[arg-type]
        assert pairs[0].answers == (read,)
        assert pairs.reading is not None
        assert ("got a space" in pairs.reading.as_text()) == (space != "no")


def test_answers_with_spaces_stay_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("clean,corrupt,answer,wrong\nA,B, x,y\n")
    assert read_pairs(path)[0] == PromptPair("A", "B", (" x",), ("y",))


BROKEN: list[tuple[str, bytes, str]] = [
    ("a.csv", b"", "must hold at least one prompt"),
    ("a.csv", b"clean,corrupt,answer\n", "must hold at least one prompt"),
    ("a.csv", b"clean,clean,answer\na,b,c\n", "'clean' twice"),
    ("a.csv", b'clean,corrupt,answer\n"a,b,c\nd,e,f\n', "double quotes; got unexpected end of data from line 2 on"),
    ("a.csv", b"clean,corrupt,answer\na,b\n", "line 2 of .* got 2 for 3 columns"),
    ("a.csv", b"clean,corrupt,answer\n\xff,b,c\n", r"(CSV).*in UTF-8"),
    ("a.csv", b'clean,corrupt,answers\na,b,"[1"\n', "'answers'"),
    ("a.csv", b"clean,corrupted,correct_idx\na,b,x\n", "token ids 'correct_idx'"),
    ("a.csv", b"clean,corrupted,correct_idx\na,b,-1\n", "token ids 'correct_idx'"),
    ("a.jsonl", b'{"clean": "a"\n', "line 1 of .* must be JSON"),
    ("a.jsonl", b"[1]\n", "line 1 of .* must be an object"),
    ("a.jsonl", b"[" * 100_000, "line 1 of .* must be JSON"),
    ("a.jsonl", json.dumps(ROW | {"clean": "\ud800"}).encode(), "Unicode"),
    ("a.jsonl", json.dumps(ROW | {"answers": [True]}).encode(), "'answers'"),
    ("a.parquet", b"PAR1", "Parquet"),
    ("a.parquet", parquet([{"clean": "a", "choices": ["x"], "answerKey": 3, "corrupt": "b"}]), "place of the right"),
    ("nowhere.csv", b"", "there to be read"),
]


@pytest.mark.parametrize(("name", "content", "said"), BROKEN)
def test_a_broken_file_is_one_line(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    if name != "nowhere.csv":
        (tmp_path / name).write_bytes(content)
    with pytest.raises(HeadcodesError, match=said) as caught:
        read_pairs(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_the_first_broken_row_is_the_message_and_counts_the_others(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("clean,corrupt,answer\na,b,c\nd\ne,f,g,h\n")
    with pytest.raises(
        HeadcodesError, match=r"line 3 of .* 1 other row is broken too: 1 of another length\. --skip-bad"
    ):
        read_pairs(path)
    pairs = read_pairs(path, skip_bad=True)
    assert len(pairs) == 1
    assert pairs.reading is not None
    assert pairs.reading.as_dict()["left_out"] == {"of another length": 2}
    assert "line 4 of" in pairs.reading.as_text()


def test_a_file_of_broken_rows_is_refused_even_so(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("clean,corrupt,answer\na\nb\n")
    with pytest.raises(HeadcodesError, match="1 other row is broken too"):
        read_pairs(path, skip_bad=True)


def test_a_thousand_pairs_with_three_to_look_at(tmp_path: Path, tiny_tokenizer: Any) -> None:
    odd = ["naïve café", "e\u0301a\u0308 combining", "東京と大阪", "👩‍👩‍👧 family", "नमस्ते", "plain words"]
    rows = [[f"{odd[i % 6]} number {i} went to", f"{odd[i % 6]} figure {i} went to", " the", " a"] for i in range(1000)]
    composing = copy.deepcopy(tiny_tokenizer)
    composing.backend_tokenizer.normalizer = normalizers.NFC()
    rows[12][1] = rows[12][0]  # identical
    rows[80][:2] = ["a café", "a cafe\u0301"]  # the same to a tokenizer that composes accents
    rows[700][2], rows[700][3] = " the garden", " the store"
    path = tmp_path / "thousand.csv"
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        csv.writer(file).writerows([["clean", "corrupt", "answer", "wrong"], *rows])
    start = time.perf_counter()
    pairs = read_pairs(path, skip_bad=True)
    tokens = tokenize(pairs, composing, skip_bad=True)
    took = time.perf_counter() - start
    assert took < 30  # a second at most on any machine (bench); here only that nothing is quadratic
    assert len(tokens) == 998
    assert tokens.pairs.reading is not None
    said = tokens.pairs.reading.as_text()
    assert "998 of 1,000 rows used" in said
    assert "left out: 1 identical texts, 1 equal after tokenisation" in said
    assert "line 14 of" in said
    assert "several tokens" in said
    assert said.count("\n") < 10
