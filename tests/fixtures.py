"""Small files in every benchmark's format, written for these tests."""
import json

CITY = {"name": "get-weather", "description": "", "parameters": {
    "city": {"type": "string", "description": "Where.", "required": True},
    "from": {"type": "string, datetime obj", "description": "First day.", "default": "today"}}}
TIME = {"name": "now", "description": "The time.", "parameters": {},
        "return": {"time": {"type": "str"}}}
KEYED = {"name": "rates", "description": "Rates.", "parameters": {
    "access_key": {"type": "string", "description": "Your key.", "required": True},
    "base": {"type": "string", "description": "Base.", "required": True}}}


def call(name, **arguments):
    return {"name": name, "arguments": arguments}


TOOLALPACA = [
    {"query": "Weather in Rome, please, and in Oslo twice.", "tools": [CITY, TIME], "answers": [
        call("get-weather", city="Rome"), call("get-weather", city="Oslo"),
        call("get-weather", city="Oslo")]},
    {"query": "Rates for EUR?", "tools": [KEYED],
     "answers": [call("rates", access_key="K-123", base="EUR")]},
    {"query": "Call what is not there.", "tools": [TIME], "answers": [call("elsewhere", n="5")]}]
SEALTOOLS = [{"query": "Is 7 prime?", "tools": [
    {"name": "isPrime", "description": "Prime?", "required": ["n"],
     "parameters": {"n": {"type": "int", "description": "A number.", "example": 3,
                          "required": True},
                    "sure": {"type": "bool", "description": "Twice?"}}}],
    "answers": [{"tool": "isPrime", "parameters": {"n": "7", "sure": "True"}}]}]
NEXUSRAVEN = [{"query": "Comment on 1.2.3.4", "tools": [
    {"name": "comment", "description": "Comment.", "parameters": {
        "ip": {"type": "string", "description": "Address."},
        "data": {"type": "object", "description": "What.", "required": ["text"]},
        "tags": {"type": "array", "items": {"type": "string"}, "description": "Tags."}}}],
    "answers": [call("comment", ip="1.2.3.4", data={"text": "bad", "tags": []}, tags=["a", "b"])]}]
CONVERSATION = [
    {"role": "user", "content": "Book a room for Ann and Bob."},
    {"role": "agent", "content": "When?"},
    {"role": "assistant", "content": '```[{"name": "Calendar", "arguments": {}}]```'},
    {"role": "tool", "content": "{'free': 'Monday'}"},
    {"role": "user", "content": "Monday.\nGenerate API Request:"}]
BOOK = {"name": "Book", "description": "Books.", "desc_for_search": "book", "return": {},
        "parameters": {"people": {"type": "list(str)", "description": "Who."},
                       "day": {"type": "str", "description": "When."}}}
APIBANK = [{"query": CONVERSATION, "tools": [BOOK],
            "answers": [call("Book", people="['Ann', 'Bob']", day="")]}] * 2
SNIPS = {intent: [{"data": [{"text": "do "}, {"text": f"it {i}", "entity": "thing"},
                            {"text": " now", "entity": f"slot_{i}"}]} for i in range(2)]
         for intent in ("AddToPlaylist", "BookRestaurant", "GetWeather", "PlayMusic", "RateBook",
                        "SearchCreativeWork", "SearchScreeningEvent")}


def function(name, required=(), **types):
    return {"name": name, "description": "Does it.", "parameters": {
        "type": "dict", "required": list(required),
        "properties": {p: {"type": kind, "description": "It."} for p, kind in types.items()}}}


PLAY = function("spotify.play", ["artist"], artist="string", minutes="integer", shuffle="boolean")
MAKE = function("make", ["shape"], shape="dict", names="array", note="string")
BFCL = {   # category: [(functions, ground truth)]
    "simple_python": [([PLAY], [{"spotify.play": {"artist": ["Abba", "ABBA"], "minutes": [20, 30],
                                                  "shuffle": ["", True]}}])],
    "multiple": [([PLAY, MAKE], [{"make": {
        "shape": [{"kind": ["round", "oval"], "size": [{"w": [1], "h": [2, ""]}],
                   "hue": ["red", ""]}],
        "names": [[{"n": ["a", "b"]}, {"n": ["c"]}]], "note": ["", "x"]}}])],
    "parallel": [([PLAY], [{"spotify.play": {"artist": ["Abba", "Cher"], "minutes": [20]}},
                           {"spotify.play": {"artist": ["Abba"], "minutes": [20]}}])],
    "parallel_multiple": [([PLAY, MAKE], [{"spotify.play": {"artist": ["Abba"]}},
                                          {"make": {"shape": [{}], "names": []}}])],
    "live_simple": [([function("go", ["to"], to="string", by="string")],
                     [{"go": {"to": ["", "home"], "by": [None]}}])],
    "live_multiple": [([PLAY, MAKE], [{"spotify.play": {"artist": ["Abba"], "minutes": [5.0]}}])],
    "irrelevance": [([PLAY], None), ([MAKE], None)]}


def write_all(folder):
    """All of them under a folder, as --data expects them; returns it."""
    (folder / "hammer").mkdir(parents=True)
    for name, rows in (("toolalpaca", TOOLALPACA), ("sealtool", SEALTOOLS),
                       ("NexusRaven", NEXUSRAVEN),
                       ("apibank_l1", APIBANK), ("apibank_l2", APIBANK[:1])):
        (folder / f"hammer/{name}.json").write_text(json.dumps(rows), encoding="utf-8")
    for intent, rows in SNIPS.items():
        (folder / f"snips/{intent}").mkdir(parents=True)
        (folder / f"snips/{intent}/validate_{intent}.json").write_text(json.dumps({intent: rows}))
    (folder / "bfcl_eval/data/possible_answer").mkdir(parents=True)
    for category, rows in BFCL.items():
        place = folder / "bfcl_eval/data"
        question = [[{"role": "user", "content": "Do it, please."}]]
        if category == "live_simple":
            question = [[{"role": "system", "content": "Be kind."}, *question[0]]]
        write_lines(place / f"BFCL_v4_{category}.json", [
            {"id": f"{category}_{i}", "question": question, "function": functions}
            for i, (functions, _) in enumerate(rows)])
        if category != "irrelevance":
            write_lines(place / f"possible_answer/BFCL_v4_{category}.json", [
                {"id": f"{category}_{i}", "ground_truth": gold}
                for i, (_, gold) in enumerate(rows)])
    return folder


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
