"""Every loader on small files of its format, and on the real ones where they are present."""
import importlib.util
import json
from pathlib import Path

import pytest

import fixtures
from benchmarks import loaders, results, score
from damages import damages

SHARED = Path(__file__).parents[2] / "shared" / "benchmarks"       # development data, if present
SETS = ("toolalpaca", "sealtools", "nexusraven", "apibank_l1", "apibank_l2", "snips",
        "bfcl_nonlive", "bfcl_live")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return fixtures.write_all(tmp_path_factory.mktemp("data") / "data")


def bfcl_rows(data):
    return loaders.load("bfcl_nonlive", data) + loaders.load("bfcl_live", data)


def text(calls):
    return f"<think>So.</think><tool_call_answer>{json.dumps(calls)}</tool_call_answer>"


def check_gold_and_damages(rows):
    """Gold is right in every row; every damage is wrong, and fails as it should."""
    expected = {"extra call": "extra call", "duplicate call": "extra call",
                "missing call": "missing call",
                "name": "wrong name", "extra argument": "extra argument",
                "missing argument": "missing argument", "wrong value": "wrong value"}
    for n, row in enumerate(rows):
        assert row.problem is None, row
        gold = row.task.answer
        assert score.judge(row, text(gold)).error is None, row
        for kind, calls in damages(gold, seed=n).items():
            verdict = score.judge(row, text(calls))
            assert verdict.error is not None, (row, kind, calls)
            assert verdict.error[1] == expected[kind], (row, kind, calls)


@pytest.mark.parametrize("name", SETS)
def test_gold_is_right_and_damage_is_wrong(name, data):
    rows = loaders.load(name, data)
    assert len({row.id for row in rows}) == len(rows)
    check_gold_and_damages(rows)


@pytest.mark.parametrize("name, count", [("toolalpaca", 76), ("sealtools", 196),
                                         ("nexusraven", 212),
                                         ("apibank_l1", 266), ("apibank_l2", 85), ("snips", 469)])
def test_real_files(name, count):
    if not SHARED.exists():
        pytest.skip("needs the benchmarks beside the project")
    rows = loaders.load(name, SHARED)
    assert len(rows) >= count
    check_gold_and_damages(rows)


@pytest.mark.skipif(importlib.util.find_spec("bfcl_eval") is None, reason="needs bfcl-eval")
def test_real_bfcl():
    rows = bfcl_rows("nowhere")
    assert len(rows) == 400 + 3 * 200 + 258 + 1053 + 240
    check_gold_and_damages(rows)


def test_hammers_oddities(data):
    first, keyed, absent = loaders.load("toolalpaca", data)
    assert first.id == "toolalpaca_0" and len(first.task.answer) == 3
    weather, now = first.task.tools
    assert weather == {"name": "get-weather", "description": "", "required": ["city"],
                       "parameters": {
        "city": {"type": "string", "description": "Where."},
        "from": {"type": "string, datetime obj", "description": "First day.", "default": "today"}}}
    # What it returns is left out.
    assert set(now) == {"name", "description", "parameters", "required"}
    seal, = loaders.load("sealtools", data)
    assert seal.task.answer == [fixtures.call("isPrime", n="7", sure="True")]
    assert seal.task.tools[0]["required"] == ["n"]
    for answer in ({"n": 7, "sure": True}, {"n": "7.0", "sure": "true"}):
        assert score.judge(seal, text([{"name": "isPrime", "arguments": answer}])).error is None
    raven, = loaders.load("nexusraven", data)
    assert raven.task.tools[0]["parameters"]["data"]["required"] == ["text"]
    answer = {"ip": "1.2.3.4", "data": '{"text": "bad", "tags": []}', "tags": "['a', 'b']"}
    assert score.judge(raven, text([{"name": "comment", "arguments": answer}])).error is None


def test_api_banks_conversation(data):
    row, twin = loaders.load("apibank_l1", data)
    assert row.task.question == (
        "User: Book a room for Ann and Bob.\nAgent: When?\n"
        'Call: [{"name": "Calendar", "arguments": {}}]\n'
        "Result: {'free': 'Monday'}\nUser: Monday.")
    assert row.id != twin.id and row.task == twin.task
    for people, day, right in ((["Ann", "Bob"], "", True), ('["Ann", "Bob"]', "", True),
                               (["Bob", "Ann"], "", False), (["Ann", "Bob"], None, False)):
        verdict = score.judge(row, text([fixtures.call("Book", people=people, day=day)]))
        assert (verdict.error is None) is right


def test_snips_offers_all_intents(data):
    rows = loaders.load("snips", data)
    assert len(rows) == 14 and rows[3].id == "BookRestaurant_1" and rows[3].part == "BookRestaurant"
    assert rows[3].task.question == "do it 1 now"
    assert rows[3].task.answer == [fixtures.call("BookRestaurant", thing="it 1", slot_1="now")]
    assert [tool["name"] for tool in rows[0].task.tools] == list(loaders.INTENTS)
    assert rows[0].task.tools[0]["description"] == "Add To Playlist."
    assert rows[0].task.tools[0]["parameters"] == dict.fromkeys(("slot_0", "slot_1", "thing"),
                                                                {"type": "string"})
    assert all(tool["required"] == [] for tool in rows[0].task.tools)


def play(**arguments):
    return fixtures.call("spotify.play", **arguments)


@pytest.mark.parametrize("row_id, calls, right", [
    ("simple_python_0", [play(artist="ABBA", minutes=30)], True),
    ("simple_python_0", [play(artist="ABBA", minutes="30", shuffle=True)], True),
    ("simple_python_0", [play(artist="Abba", minutes=20, shuffle=None)], True),
    ("simple_python_0", [play(artist="Abba", minutes=20, shuffle=False)], False),
    ("simple_python_0", [play(artist="Abba")], False),
    ("simple_python_0", [play(artist="Cher", minutes=20)], False),
    ("multiple_0", [fixtures.call("make", shape={"kind": "oval", "size": {"w": 1}},
                                  names=[{"n": "b"}, {"n": "c"}])],
     True),
    ("multiple_0", [fixtures.call("make", shape='{"kind": "oval", "size": {"w": 1}}',
                                  names='[{"n": "b"}, {"n": "c"}]')], True),
    ("multiple_0", [fixtures.call("make", shape={"kind": "oval", "size": {"w": 1, "h": 2},
                                                 "hue": "red"},
                                  names=[{"n": "a"}, {"n": "c"}], note="x")], True),
    ("multiple_0", [fixtures.call("make", shape={"kind": "oval", "size": {"w": 2}},
                                  names=[{"n": "a"}, {"n": "c"}])],
     False),
    ("multiple_0", [fixtures.call("make", shape={"size": {"w": 1}},
                                  names=[{"n": "a"}, {"n": "c"}])], False),
    ("multiple_0", [fixtures.call("make", shape={"kind": "oval", "size": {"w": 1}},
                                  names=[{"n": "c"}, {"n": "b"}])],
     False),
    # Taking the first gold call that fits would leave Cher without one.
    ("parallel_0", [play(artist="Abba", minutes=20), play(artist="Cher", minutes=20)], True),
    ("parallel_0", [play(artist="Cher", minutes=20), play(artist="Cher", minutes=20)], False),
    ("parallel_multiple_0", [fixtures.call("make", shape={}, names=[]), play(artist="Abba")], True),
    ("parallel_multiple_0", [fixtures.call("make", shape={}), play(artist="Abba")], False),
    # "" accepted in a required argument is a value, not leave to drop it; null accepted is.
    ("live_simple_0", [fixtures.call("go", to="")], True),
    ("live_simple_0", [fixtures.call("go")], False),
    ("live_multiple_0", [play(artist="Abba", minutes=5)], True),
])
def test_bfcl_accepts_several_values(row_id, calls, right, data):
    row, = (row for row in bfcl_rows(data) if row.id == row_id)
    assert (score.judge(row, text(calls)).error is None) is right


def test_bfcl_questions_and_parts(data):
    rows = {row.id: row for row in bfcl_rows(data)}
    parts = list(dict.fromkeys(row.part for row in rows.values()))
    assert parts == [*loaders.NON_LIVE, *loaders.LIVE]
    assert rows["multiple_0"].task.question == "Do it, please."
    assert rows["live_simple_0"].task.question == "System: Be kind.\nUser: Do it, please."
    assert rows["simple_python_0"].task.tools[0]["required"] == ["artist"]


@pytest.mark.parametrize("answer, error", [
    ("<tool_call_answer>[]</tool_call_answer>", None), ("I cannot help with that.", None),
    ("", None),
    ("<tool_call_answer>none</tool_call_answer>", ("format", "unparsable")),
    ('<tool_call_answer>[{"name": "make"', ("format", "block not closed")),
    ('<tool_call_answer>[{"name": "make"}]</tool_call_answer>', ("structural", "extra call"))])
def test_irrelevance(answer, error, data):
    row = next(row for row in loaders.load("bfcl_nonlive", data) if row.part == "irrelevance")
    assert score.judge(row, answer).error == error


def test_nobody_reads_bfcls_accuracy_without_its_irrelevance(data):
    rows = loaders.load("bfcl_nonlive", data)
    none = [score.judge(row, "<tool_call_answer>[]</tool_call_answer>") for row in rows]
    first, second = results.set_lines("bfcl_nonlive", rows, none)[:2]
    right = sum(row.part == "irrelevance" for row in rows)
    assert first.startswith("bfcl_nonlive: ") and f"of {len(rows)} right" in first
    assert second.startswith(f"    irrelevance: 100.0 % of {right} right")


def test_variants_of_hammers_format(tmp_path):
    """JSON Schema, OpenAI's wrapper, JSON in strings, one answer, Seal-Tools' words."""
    schema = {"type": "object", "properties": {"ip": {"type": "string"}}, "required": ["ip"]}
    tool = {"type": "function", "function": {"name": "f", "description": "F.",
                                             "parameters": schema}}
    rows = [{"query": "q", "tools": [tool], "answers": fixtures.call("f", ip="1")},
            {"query": "q", "tools": json.dumps([tool]),
             "answers": json.dumps([fixtures.call("f", ip="1")])},
            {"query": "q", "tools": [tool["function"]],
             "answers": [{"name": "f", "parameters": {"ip": "1"}}]}]
    (tmp_path / "hammer/data/test/original").mkdir(parents=True)
    (tmp_path / "hammer/data/test/original/NexusRaven.json").write_text(json.dumps(rows))
    loaded = loaders.load("nexusraven", tmp_path)
    assert all(row.task == loaded[0].task for row in loaded)
    assert loaded[0].task.tools == [{"name": "f", "description": "F.", "required": ["ip"],
                                     "parameters": {"ip": {"type": "string"}}}]


@pytest.mark.parametrize("broken", [
    7, {}, {"query": "", "tools": [fixtures.TIME], "answers": []},
    {"query": 7, "tools": [fixtures.TIME], "answers": []},
    {"query": "q", "tools": [], "answers": []},
    {"query": "q", "tools": [{"name": ""}], "answers": []},
    {"query": "q", "tools": [fixtures.TIME], "answers": 3},
    {"query": "q", "tools": [fixtures.TIME], "answers": [{"name": "now"}]},
    {"query": [{"role": "king", "content": "x"}], "tools": [fixtures.TIME], "answers": []},
    {"query": [7], "tools": [fixtures.TIME], "answers": []},
    {"query": [{"role": [], "content": "x"}], "tools": [fixtures.TIME], "answers": []},
    {"query": "q", "tools": "[", "answers": []},
    {"query": "Caf\ud83d", "tools": [fixtures.TIME], "answers": []}])
def test_a_broken_row_keeps_its_place(broken, tmp_path):
    (tmp_path / "hammer").mkdir()
    (tmp_path / "hammer/toolalpaca.json").write_text(json.dumps([fixtures.TOOLALPACA[0], broken]))
    good, bad = loaders.load("toolalpaca", tmp_path)
    assert good.problem is None and bad.id == "toolalpaca_1" and bad.problem
    verdict = score.judge(bad, None)
    assert verdict.error == ("not asked", "broken row")
    with pytest.raises(ValueError, match="no row can be read"):
        (tmp_path / "hammer/toolalpaca.json").write_text(json.dumps([broken]))
        loaders.load("toolalpaca", tmp_path)


def test_broken_rows_of_snips_and_bfcl(tmp_path):
    data = fixtures.write_all(tmp_path / "data")
    place = data / "snips/RateBook/validate_RateBook.json"
    twice = {"data": [{"text": "a", "entity": "s"}, {"text": "b", "entity": "s"}]}
    place.write_text(json.dumps({"RateBook": [*fixtures.SNIPS["RateBook"], {"data": 3}, twice]}))
    bad = [row for row in loaders.load("snips", data) if row.problem]
    assert [row.id for row in bad] == ["RateBook_2", "RateBook_3"] and "twice" in bad[1].problem
    place = data / "bfcl_eval/data/BFCL_v4_parallel.json"
    place.write_text(place.read_text()
                     + '{"id": "parallel_9", "question": [], "function": []}\n{}\n')
    bad = [row for row in loaders.load("bfcl_nonlive", data) if row.problem]
    assert [row.id for row in bad] == ["parallel_9", "parallel_2"]
    truths = data / "bfcl_eval/data/possible_answer/BFCL_v4_parallel.json"
    truths.write_text(json.dumps({"id": "parallel_0", "ground_truth": []}) + "\n7\n")
    with pytest.raises(ValueError, match="the row has no gold"):
        loaders.load("bfcl_nonlive", data)
    place.write_text(place.read_text() + '{"id"\n')
    with pytest.raises(ValueError, match="BFCL_v4_parallel.json is damaged in line 4"):
        loaders.load("bfcl_nonlive", data)
    (data / "snips/RateBook/validate_RateBook.json").write_text("[]")
    with pytest.raises(ValueError, match="validate_RateBook.json: no row can be read"):
        loaders.load("snips", data)


@pytest.mark.parametrize("content", [b"[1", b"{}", b"[]", b"7", b"\xff\xfe[]", b"[NaN]"])
def test_a_broken_file_is_one_line(content, tmp_path):
    (tmp_path / "hammer").mkdir()
    (tmp_path / "hammer/sealtool.json").write_bytes(content)
    with pytest.raises(ValueError) as error:
        loaders.load("sealtools", tmp_path)
    assert "sealtool.json" in str(error.value) and "\n" not in str(error.value)


def test_missing_files_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for name, named in (("apibank_l2", "apibank_l2.json"), ("snips", "validate_AddToPlaylist.json"),
                        ("bfcl_live", "bfcl_eval/data/BFCL_v4_simple_python.json")):
        with pytest.raises(ValueError, match=named):
            loaders.load(name, tmp_path)


def test_bfcl_is_found_in_the_installed_package(data, monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(data))
    (data / "bfcl_eval/__init__.py").write_text("raise RuntimeError('imported')")
    assert loaders.bfcl_folder(tmp_path) == data / "bfcl_eval/data"


def test_a_limit_spreads_over_the_set(data):
    ids = [row.id for row in loaders.load("snips", data, 7)]
    assert ids == [f"{intent}_0" for intent in loaders.INTENTS]
    assert len(loaders.load("snips", data, 1000)) == 14


@pytest.mark.skipif(importlib.util.find_spec("bfcl_eval") is None, reason="needs bfcl-eval")
def test_agreement_with_an_independent_judge():
    import bfcl_agreement
    results = bfcl_agreement.compare("nowhere")
    damaged = [r for r in results if r[0] in bfcl_agreement.DAMAGES]
    assert len(damaged) >= 2000 and all(ours == theirs for _, _, ours, theirs, *_ in damaged)
    apart = {r[5] for r in results if r[0] == "gold" and r[2] != r[3]}
    assert apart == set(bfcl_agreement.GOLD_THAT_THEY_REFUSE)
