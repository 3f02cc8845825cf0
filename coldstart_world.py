"""The made-up world of the cold start: tasks of all domains, and what the three roles say to them.

It is wide, and its names are put together afresh for every task, so that nothing can be learnt by
heart: what remains to be learnt is to copy from menu and question, and to keep to the format.
Nothing of it comes from a benchmark.

    task            menu of tools, question, calls           `make_task`
    what is said    by Solver, Generator and judge           `solver_text`, `generator_text`, `damage`
    example         prompt and completion of one of them     `example`
"""
import json
import random
from dataclasses import dataclass, replace
from datetime import date, timedelta

import curriculum
import generator
import solver
from verify import Task

# ---------------------------------------------------------------------------------------------
# The words of the world

# Verbs of a line mean the same: a question may use another one, a menu never holds two for a noun.
VERBS = [line.split() for line in """
    get fetch retrieve show view find search lookup browse load read query
    create add make register generate insert build
    delete remove erase drop discard
    update edit change modify adjust revise
    book reserve
    order buy purchase
    cancel revoke withdraw
    send deliver dispatch forward
    share publish post
    check verify validate confirm
    calculate compute estimate
    predict forecast project
    compare contrast
    convert transform
    translate
    track monitor follow watch
    schedule plan arrange
    start launch run begin
    stop halt end
    enable activate
    disable deactivate
    rate score
    export download save
    import upload
    assign allocate
    pay settle
    analyze inspect examine
    recommend suggest propose
    count tally
    sort rank
    merge combine join
    copy duplicate clone
    archive store
    restore recover
    rename relabel
    lock secure
    unlock release
    play stream
    renew extend
    approve accept
    reject decline
    scan detect
    sync refresh
    encrypt encode
    decrypt decode
    invite notify alert
    tag label""".strip().split("\n")]
NOUNS = {  # of each of the Generator's domains
    "finance": "account loan invoice portfolio stock bond mortgage exchange_rate dividend budget",
    "healthcare": "patient appointment prescription vaccine symptom lab_result clinic allergy diet",
    "productivity": "task note checklist project document spreadsheet whiteboard template habit",
    "retail_ecommerce": "product cart coupon refund wishlist catalog gift_card review size_chart",
    "scheduling": "meeting reminder shift calendar time_slot deadline event agenda availability",
    "database": "table record index schema backup view transaction column replica snapshot",
    "cloud_infrastructure": "server bucket cluster instance container load_balancer volume quota",
    "system": "process file folder disk service printer driver user_group clipboard display",
    "programming": "function branch commit pull_request package test_suite build class snippet",
    "geolocation": "route coordinate landmark elevation boundary address time_zone map postcode",
    "logistics": "shipment parcel warehouse pallet fleet customs_form cargo courier pickup stock",
    "communication": "message email call channel contact voicemail group_chat signature thread",
    "iot": "sensor thermostat lamp camera doorbell smart_plug vacuum firmware humidity gateway",
    "cybersecurity": "firewall password vulnerability certificate threat access_log token breach",
    "insurance": "policy claim premium beneficiary coverage deductible quote accident damage",
    "legal": "contract case court_date clause trademark lawsuit statute witness license will",
    "news": "headline article newsletter press_release editorial interview source breaking_story",
    "weather": "forecast storm_warning temperature rainfall wind_speed air_quality tide sunrise",
    "sports": "match team player league score standings stadium tournament training transfer",
    "entertainment": "movie song concert podcast playlist game episode artist festival trailer",
    "education": "course lesson quiz tutor grade scholarship syllabus lecture student essay",
    "real_estate": "apartment listing lease tenant property_tax viewing floor_plan agent rent",
    "food_ordering": "restaurant dish menu_item recipe delivery table_booking tip ingredient wine",
    "translation": "phrase subtitle glossary dialect transcript sentence dictionary accent idiom",
    "utilities": "electricity_bill water_meter outage tariff gas_usage solar_panel connection",
    "government": "passport visa permit tax_return election census grant public_office ballot",
    "memory_management": "memory cache heap buffer page garbage pointer allocation leak session",
    "web_search": "website page image_result search_history bookmark domain backlink snippet",
    "social_media": "post hashtag follower story comment profile poll direct_message feed trend",
    "math": "equation matrix integral prime fraction polygon logarithm median vector sequence",
    "vehicle_control": "engine tire seat mirror cruise_control headlight charger window brake",
    "travel": "flight hotel train cruise itinerary rental_car ferry luggage tour boarding_pass"}
NOUNS = {domain: nouns.split() for domain, nouns in NOUNS.items()}
ASPECTS = """status details history info price list report summary settings log statistics owner
    version type summary limits plan archive rating cost location""".split()
MODIFIERS = """daily weekly monthly public private nearby active recent upcoming shared local
    digital annual online premium family backup regional custom pending global mobile winter internal
    temporary featured random legacy secondary quick""".split()
SYLLABLES = """ba bri cal cor da del dra el fen fi gal gor hal hu in jor ka kel kri la lo lum ma mi
    mor na nex no or pa pel qua ra rin ro sa sen sol ta tor tri u va vel vor wi xa yan zen zi zo
    """.split()
PLACES = """Oslo|Rome|Lima|Cairo|Kyoto|Delhi|Berlin|Lisbon|Prague|Warsaw|Denver|Toronto|Quito|Nairobi
    |Accra|São Paulo|Zürich|Kraków|Málaga|Reykjavík|New Orleans|Cape Town|Buenos Aires|Ho Chi Minh City
    |San José|Göteborg|Łódź|Montréal|Tel Aviv|Abu Dhabi|Kuala Lumpur|Addis Ababa|Salt Lake City
    |Saint Petersburg|Thessaloniki|Antwerp|Bilbao|Bordeaux|Florence|Guadalajara|Hyderabad|Izmir
    |Jakarta|Kigali|Leeds|Marrakech|Naples|Osaka|Porto|Riga|Sapporo|Tbilisi|Utrecht|Valparaíso
    |Wellington|Yerevan|Zagreb|Norway|Kenya|Peru|Vietnam|Portugal|Morocco|New Zealand|South Korea
    |Bavaria|Tuscany|Ontario|Queensland|Texas|Brooklyn|12 Harbour Street|48 Elm Avenue
    |Rue de Rivoli 7|Platform 9|the old town|Terminal 2"""
PLACES = [place.strip() for place in PLACES.split("|")]
FIRST_NAMES = """Anna Ben Carla David Emma Felix Grace Hugo Iris Jack Leo Mia Noah Olga Paul Rosa Sam
    Tina Vera Yara Zoë José Łukasz Søren Aïcha Björn Chloé Dmitri Eszter Fatima Giulia Hiroshi Ingrid
    Jamal Keiko Lakshmi Mateo Nguyen Oluwaseun Priya Qiang Rafael Sinead Tariq Ulrike Wei Xavier
    Yusuf Zanele Amara Bogdan Concetta Dilnoza""".split()
LAST_NAMES = """Miller Okafor Tanaka García Müller Rossi Novák Kowalski Andersson Haddad Silva Dubois
    Ivanova Kim Patel Yılmaz O'Connor Nakamura Mbeki Lindqvist Papadopoulos Fernández Cohen Nowak
    Johansson van Dijk Ferrari Adeyemi Sato Murphy""".split()
THINGS = """river lantern garden orchid compass violin harbor meadow copper glacier falcon bicycle
    pottery chess sailing coffee jazz robotics astronomy yoga ceramics origami beekeeping geology
    opera cycling bread whales castles volcanoes photography folklore mosaics tennis knitting
    bridges dinosaurs poetry_slams rockets typography""".replace("_", " ").split()
ADJECTIVES = """silent golden northern crooked blue hidden ancient bright gentle frozen crimson
    wandering modern marine urban wild vintage electric hollow lucky tropical""".split()
SENTENCES = ("the {0} is ready for pickup", "please bring the {1} {0}", "running ten minutes late",
             "see you at the {0} club", "the {1} one was damaged", "thanks for the {0} lesson",
             "need more {0} before Friday", "do not forget the {0}", "all good with the {1} {0}",
             "moved to the {1} room", "happy birthday, old friend", "the {0} starts soon")
ENUMS = {  # name -> values
    "unit": "metric imperial", "units": "celsius fahrenheit kelvin", "sort_order": "asc desc",
    "sort_by": "price rating distance newest", "priority": "low medium high urgent",
    "size": "small medium large", "format": "pdf csv json xml", "status": "open closed pending",
    "color": "red green blue black white", "currency": "USD EUR GBP JPY CHF INR",
    "language": "English Spanish French German Japanese Swahili Polish", "lang": "en es fr de pt",
    "cabin": "economy business first", "mode": "auto manual eco sport", "gender": "male female",
    "level": "beginner intermediate advanced", "type": "basic standard premium",
    "frequency": "daily weekly monthly", "visibility": "public private", "role": "admin editor guest",
    "payment_method": "card cash paypal transfer", "cuisine": "Thai Italian Mexican Ethiopian Greek",
    "genre": "comedy thriller drama horror", "severity": "minor major critical"}
ENUMS = {name: values.split() for name, values in ENUMS.items()}
FLAGS = """include_tax verbose notify express overwrite recursive gift_wrap is_public round_trip
    pet_friendly safe_search draft breakfast_included auto_renew open_now show_hidden""".split()
KINDS = {  # kind -> names of its parameters, and natural wordings of a value ({w}: the name)
    "place": ("city location town place region address area city_name venue site",
              " in {v}| near {v}| around {v}"),
    "origin": ("origin from start source departure_city from_city start_point", " from {v}"),
    "target": ("destination to target arrival_city to_city end_point", " to {v}"),
    "person": ("name customer user person patient employee author owner client full_name username "
               "guest_name contact assignee", " for {v}| belonging to {v}| of {v}"),
    "date": ("date day start_date due_date check_in when delivery_date end_date from_date",
             " on {v}| for {v}| dated {v}"),
    "time": ("time hour start_time at departure_time alarm", " at {v}"),
    "count": ("count quantity guests people nights copies seats rows pages days items qty tickets "
              "duration_minutes", " for {v} {w}| with {v} {w}| and {v} {w}"),
    "limit": ("limit max_results top_n page per_page n max offset", " with at most {v} results"),
    "number": ("price amount budget weight height rate temperature distance radius latitude value "
               "threshold score percentage longitude total x", ""),
    "code": ("id code reference order_id tracking_number sku account_number ticket_id serial key "
             "item_id user_id postal_code uuid ref symbol", " with {w} {v}| number {v}| {v}"),
    "email": ("email recipient_email contact_email mail to_address", " via {v}| to {v}"),
    "url": ("url link website image_url source_url", " at {v}| from {v}"),
    "topic": ("topic subject query keyword q theme category interest search_term tag",
              " about {v}| on {v}| related to {v}"),
    "text": ("message text note content comment description reason body caption",
             ' saying "{v}"| with the {w} "{v}"| that reads "{v}"'),
    "title": ("title book movie song product_name item label event_name",
              ' called "{v}"| named {v}| titled "{v}"'),
    "year": ("year season_year release_year birth_year from_year", " in {v}| from {v}"),
    "flag": ("", " with {w} turned {v}"), "enum": ("", " in {v}| as {v}| with {v} {w}")}
KINDS = {kind: (names.split(), wordings.split("|")) for kind, (names, wordings) in KINDS.items()}
OFTEN = {"place": 3, "person": 2, "date": 3, "count": 3, "number": 3, "code": 4, "topic": 2, "enum": 4}
PLAIN = (" with {w} {v}", ", {w}: {v}", " using {v} as the {w}", " where the {w} is {v}",
         " ({w} {v})", ", {w} = {v}", " and {v} for the {w}", ", {w} {v}", " and set {w} to {v}",
         ". The {w} is {v}", ". Use {v} as {w}", ". For the {w}, take {v}", ", {w} should be {v}")
OPENINGS = ("Please ", "Can you ", "I need you to ", "I want to ", "Could you please ", "Help me ",
            "I would like to ", "Hey, ", "Would you ", "", "", "", "Kindly ", "Let's ",
            "My task for today: ", "I was wondering if you could ", "We have to ")
PRETEXTS = ("I am working on something with {0}. ", "It has been a long week. ", "Hello there! ",
            "{0} asked me about this. ", "I just came back from {1}. ", "Quick one. ",
            "For a project in our office: ", "I never did this before. ")
AND_THEN = (". Also, ", " and then ", ", and also ", ". After that, ", "; next, ", " and ")
AGAIN = (", and once more", "; the same again", ", and a second time", ". Do it again")


# ---------------------------------------------------------------------------------------------
# Values and names


def invented(rng):
    """A word that nobody has seen: two or three syllables."""
    return "".join(rng.choices(SYLLABLES, k=rng.randint(2, 3)))


def sample_value(rng, kind, values=()):
    """A JSON value of the kind; `values` are those of an enum."""
    if kind == "enum":
        return rng.choice(values)
    if kind == "flag":
        return rng.random() < 0.6
    if kind in ("place", "origin", "target"):
        return rng.choice(PLACES) if rng.random() < 0.85 else invented(rng).capitalize()
    if kind == "person":
        first = rng.choice(FIRST_NAMES)
        return first if rng.random() < 0.4 else f"{first} {rng.choice(LAST_NAMES)}"
    if kind == "date":
        day = date(2023, 1, 1) + timedelta(rng.randrange(1500))
        return day.strftime(rng.choice(("%Y-%m-%d", "%Y-%m-%d", "%d %B %Y", "%B %d, %Y", "%m/%d/%Y",
                                        "%d.%m.%Y", "next %A", "%A", "%B %d", "tomorrow")))
    if kind == "time":
        hour, minute = rng.randint(1, 12), rng.choice((0, 5, 15, 20, 30, 45))
        return rng.choice((f"{hour + 8:02}:{minute:02}", f"{hour}:{minute:02} pm", f"{hour}am", "noon"))
    if kind in ("count", "limit"):
        return rng.choice((rng.randint(2, 19), rng.randint(2, 9), rng.randint(20, 5000)))
    if kind == "year":
        return rng.randint(1950, 2029)
    if kind == "number":
        return rng.choice((rng.randint(1, 20000), round(rng.uniform(-90, 180), rng.randint(1, 4)),
                           round(rng.uniform(0, 500), 2)))
    return sample_text(rng, kind)


def sample_text(rng, kind):
    """A string of the kind: code, email, url, topic, text or title."""
    thing, adjective, word = rng.choice(THINGS), rng.choice(ADJECTIVES), invented(rng)
    if kind == "code":
        letters, number = "".join(rng.choices("ABCDEFGHKLMNPRSTVXZ", k=rng.randint(2, 4))), rng.randint
        return rng.choice((f"{letters}-{number(10, 9999)}", f"{letters}{number(100, 99999)}",
                           str(number(1000, 9999999)), f"{word}_{number(1, 99)}", letters,
                           f"{letters.lower()}{number(1, 9)}{word[:2]}{number(10, 99)}"))
    if kind == "email":
        return f"{rng.choice((thing, word, adjective))}.{word}@{rng.choice((thing, word))}.com"
    if kind == "url":
        return f"https://{rng.choice(('www.', ''))}{word}.{rng.choice(('com', 'org'))}/{thing}"
    if kind == "text":
        return rng.choice(SENTENCES).format(thing, adjective)
    if kind == "topic":
        return rng.choice((thing, f"{adjective} {thing}", f"{word} {thing}", word))
    return rng.choice((f"The {adjective.title()} {thing.title()}", f"{word.title()} {thing}",
                       f"{adjective.title()} {word.title()}", f"{thing.title()} {rng.randint(2, 9)}"))


def styled(words, style):
    """A name of several words as a program writes it."""
    if style == "camel":
        return words[0] + "".join(word.capitalize() for word in words[1:])
    if style == "Pascal":
        return "".join(word.capitalize() for word in words)
    return {"snake": "_", "kebab": "-", "dotted": ".", "flat": ""}[style].join(words)


def tool_name(rng, verb, noun, style):
    """The name of a tool that does `verb` to a noun of one or more words."""
    if style == "dotted":          # weather.getForecast, weather.forecast.get
        rest = [verb, *noun[1:]]
        return f"{noun[0]}.{styled(rest, rng.choice(('camel', 'snake')))}"
    words = [verb, *noun] if rng.random() < 0.85 else [*noun, verb]
    if rng.random() < 0.06 and len(noun) > 1:
        words = noun
    if rng.random() < 0.12 and verb in VERBS[0][:3]:
        words = [*words, "by", rng.choice(("id", "name", "date", "city", "query"))]
    return styled(words, style)


# ---------------------------------------------------------------------------------------------
# Tools


@dataclass
class Made:
    """A tool of the world, and what a question needs to know of it."""

    tool: dict        # as in a menu
    verbs: list       # words for what it does
    noun: str         # and to what
    kinds: dict       # parameter -> (kind, its name in words, values of an enum)


def third_person(verb):
    if verb.endswith("y") and verb[-2] not in "aeou":
        return verb[:-1] + "ies"
    return verb + ("es" if verb.endswith(("s", "sh", "ch", "x")) else "s")


def make_parameters(rng, noun, style, most):
    """{parameter: (kind, words, values)} of a tool: each time other ones."""
    found, kinds = {}, [kind for kind in KINDS for _ in range(OFTEN.get(kind, 1))]
    for _ in range(min(rng.choice((0, 1, 1, 1, 2, 2, 2, 3, 3, 4, 5)), most)):
        kind, values = rng.choice(kinds), ()
        if kind == "enum":
            base = rng.choice(list(ENUMS))
            values = ENUMS[base]
        else:
            base = rng.choice(FLAGS if kind == "flag" else KINDS[kind][0])
        words = base.split("_")
        if rng.random() < 0.1 and len(words) == 1:
            words = [noun[-1], *words]
        elif rng.random() < 0.06:
            words = [invented(rng), *words[-1:]]
        name = styled(words, style)
        if words not in [other for _, other, _ in found.values()]:
            found[name] = (kind, words, values)
    return {name: (kind, " ".join(words), values)
            for name, (kind, words, values) in found.items()}


def schema(rng, kind, words, values, noun, described):
    """The schema of a parameter, as a menu has it."""
    kinds = {"flag": ("boolean", "bool"), "count": ("integer", "int"), "limit": ("integer", "int"),
             "year": ("integer", "int"), "number": ("number", "float")}
    result = {"type": kinds.get(kind, ("string", "str"))[described == "python"]}
    listed = kind == "enum" and rng.random() < 0.6
    if listed:
        result["enum"] = list(values)
    if described and rng.random() < 0.85:
        text = rng.choice(("The {w} of the {n}", "{w} of the {n}", "The {w}", "{w} to use",
                           "Which {w}", "Specifies the {w} for the {n}.")).format(w=words, n=noun)
        if kind == "enum" and not listed:
            text += f": {', '.join(values)}"
        elif rng.random() < 0.15 and kind != "flag":
            text += f", e.g. {sample_value(rng, kind, values)}"
        result["description"] = text[0].upper() + text[1:]
    return result


def make_tool(rng, verbs, noun, style, described, most=5):
    """A Made tool.

    Args:
        verbs: a line of VERBS.
        noun: its words.
        style: how its name is written.
        described: whether its parameters are; "python": also with Python's names of types.
        most: parameters it has at most.
    """
    verb, thing = rng.choice(verbs), " ".join(noun)
    inner = "camel" if style in ("camel", "Pascal") else "snake"
    kinds = make_parameters(rng, noun, inner if rng.random() < 0.9 else "snake", most)
    parameters = {name: schema(rng, *kind, thing, described) for name, kind in kinds.items()}
    required = [name for n, name in enumerate(kinds) if rng.random() < (0.85 if n == 0 else 0.6)]
    said = rng.choice(("{v} the {n}", "{v} {n}", "{s} the {n}", "{s} a {n}", "Use this to {v} a {n}")
                      if described else ("{v} the {n}", "{v} a {n}", "{s} the {n}"))
    said = said.format(v=verb, s=third_person(verb), n=thing)
    if described and kinds and rng.random() < 0.3:
        said += " by " + rng.choice(list(kinds.values()))[1]
    tool = {"name": tool_name(rng, verb, noun, style),
            "description": said[0].upper() + said[1:] + rng.choice(("", ".")),
            "parameters": parameters, "required": required}
    return Made(tool, verbs, thing, kinds)


def make_menu(rng, domain, size, lean):
    """`size` Made tools of a domain; most of them share a verb or a noun with the first."""
    style = rng.choice(("camel", "camel", "snake", "snake", "Pascal", "kebab", "dotted", "flat"))
    described = not lean and rng.choice((False, True, True, "python"))
    first, menu, seen = None, [], set()
    while len(menu) < size:
        verbs, noun = rng.choice(VERBS), rng.choice(NOUNS[domain]).split("_")
        if rng.random() < 0.35:
            noun = [*noun, rng.choice(ASPECTS)]
        if rng.random() < 0.2:
            noun = [rng.choice(MODIFIERS) if rng.random() < 0.7 else invented(rng), *noun]
        if first and rng.random() < 0.6:
            verbs, noun = (verbs, first[1]) if rng.random() < 0.6 else (first[0], noun)
        if (verbs[0], *noun) in seen:
            continue
        own = style if rng.random() < 0.9 else rng.choice(("camel", "snake", "Pascal"))
        made = make_tool(rng, verbs, noun, own, described, 2 if lean and menu else 5)
        if made.tool["name"] in [other.tool["name"] for other in menu]:
            continue
        first = first or (verbs, noun)
        seen.add((verbs[0], *noun))
        menu.append(made)
    return menu


# ---------------------------------------------------------------------------------------------
# Tasks


def make_call(rng, made):
    """A call that gives what is required, and every second of the other arguments."""
    given = [name for name in made.kinds
             if name in made.tool["required"] or rng.random() < 0.5]
    return {"name": made.tool["name"],
            "arguments": {name: sample_value(rng, made.kinds[name][0], made.kinds[name][2])
                          for name in given}}


def phrases(rng, made, arguments, manner):
    """What a question says of each argument: a list of strings."""
    kinds, found = [made.kinds[name][0] for name in arguments], []
    for name, value in arguments.items():
        kind, words, _ = made.kinds[name]
        natural = kinds.count(kind) == 1 and KINDS[kind][1] != [""] and manner == "natural"
        wording = rng.choice(KINDS[kind][1] if natural else PLAIN)
        if isinstance(value, bool):
            said = (("on" if value else "off") if natural
                    else rng.choice(("true", "yes") if value else ("false", "no")))
        elif isinstance(value, int) and 2 <= value <= 9 and natural and rng.random() < 0.4:
            said = "two three four five six seven eight nine".split()[value - 2]
        elif isinstance(value, int) and value > 999 and kind != "year" and rng.random() < 0.3:
            said = f"{value:,}"
        elif isinstance(value, str) and "\"" not in wording and rng.random() < 0.15:
            said = rng.choice(("'{}'", '"{}"')).format(value)
        else:
            said = str(value)
        found.append(wording.format(v=said, w=words))
    return found


def clause(rng, made, call, manner):
    """(what to do, what is said of each argument)."""
    verb = rng.choice(made.verbs)
    action = f"{verb} {rng.choice(('the', 'a', 'my', 'our', 'this', ''))} {made.noun}"
    if manner == "terse":
        action = rng.choice((action, f"{made.noun} {verb}"))
    said = phrases(rng, made, call["arguments"], manner)
    if rng.random() < 0.3:
        rng.shuffle(said)
    return " ".join(action.split()), said


def make_question(rng, menu, calls, context):
    """What a user says who wants the calls.

    Args:
        menu: the Made tool of each call.
        context: "single_turn" or "multi_turn".
    """
    manner = rng.choice(("natural", "natural", "natural", "plain", "terse"))
    clauses = [clause(rng, made, call, manner) for made, call in zip(menu, calls)]
    opening = "" if manner == "terse" else rng.choice(OPENINGS)
    if manner != "terse" and rng.random() < 0.2:
        opening = rng.choice(PRETEXTS).format(rng.choice(FIRST_NAMES), rng.choice(PLACES)) + opening
    if context == "multi_turn":
        return conversation(rng, opening, *clauses[0])
    text = opening + clauses[0][0] + "".join(clauses[0][1])
    for made, (action, said) in zip(menu[1:], clauses[1:]):
        again = made is menu[0]
        text += (rng.choice(AGAIN) if again else rng.choice(AND_THEN) + action) + "".join(said)
    if len(text) < 26:
        text = "right now I need this: " + text
    return text[0].upper() + text[1:] + ("?" if "you " in opening else rng.choice((".", ".", "", "!")))


def conversation(rng, opening, action, said):
    """A question told in turns."""
    cut = rng.randint(0, len(said))
    ask = rng.choice(("Sure, anything else?", "Of course. What are the details?", "Go on, please.",
                      "Happy to help. What do you need exactly?"))
    rest = "".join(said[cut:]).lstrip(" ,.;") or "no, that is all"
    return (f"User: {opening}{action}{''.join(said[:cut])}.\nAgent: {ask}\n"
            f"User: {rest[0].upper()}{rest[1:]}.")


def make_task(rng, spec, lean=False):
    """A sound task for a generator.Spec, whose menu may be short of nothing; with no calls, no tool
    of the menu fits. Returns (Task, its menu as Made)."""
    twice = spec.calls == 2 and rng.random() < 0.4
    menu = make_menu(rng, spec.domain, spec.tools + (spec.calls == 0), lean)
    wanted = [menu[0]] * 2 if twice else menu[:max(spec.calls, 1)]
    calls = [make_call(rng, made) for made in wanted]
    if twice and calls[0] == calls[1]:
        return make_task(rng, spec, lean)
    question = make_question(rng, wanted, calls, spec.context)
    if spec.calls == 0:
        menu, calls = menu[1:], []
    menu = rng.sample(menu, len(menu))
    task = Task(question, [made.tool for made in menu], calls,
                {"domain": spec.domain, "context": spec.context, "tools": spec.tools,
                 "calls": spec.calls})
    return task, {made.tool["name"]: made for made in menu}


# ---------------------------------------------------------------------------------------------
# What the three roles say


def plan(calls, menu):
    """The calls in short, in the order of the menu's parameters; "-" where one is not given."""
    clauses = []
    for call in calls:
        said = {name: value if isinstance(value, str) else json.dumps(value)
                for name, value in call["arguments"].items()}
        given = [f"{name} = {said.get(name, '-')}" for name in menu[call["name"]].kinds]
        clauses.append(f"{call['name']}: {', '.join(given) or 'nothing to give'}")
    return "; ".join(clauses)


def solver_text(task, menu):
    think = plan(task.answer, menu) if task.answer else "no tool in the list does this"
    return (f"<think>{think}</think>\n<tool_call_answer>"
            f"{json.dumps(task.answer, ensure_ascii=False)}</tool_call_answer>")


def generator_text(task, menu):
    names = ", ".join(tool["name"] for tool in task.tools)
    return (f"<think>tools: {names}. calls: {plan(task.answer, menu)}</think>\n"
            f"<question>{task.question}</question>\n"
            f"<available_tools>{json.dumps(task.tools, ensure_ascii=False)}</available_tools>\n"
            f"<tool_call_answer>{json.dumps(task.answer, ensure_ascii=False)}</tool_call_answer>")


def damage(rng, task, menu):
    """Spoil the answer of a task; returns the scores that it then deserves."""
    call = rng.choice(task.answer)
    made, arguments = menu[call["name"]], call["arguments"]
    optional = [name for name in made.kinds if name not in arguments]
    if optional and rng.random() < 0.5:        # made up, where the question says nothing
        name = rng.choice(optional)
        arguments[name] = sample_value(rng, made.kinds[name][0], made.kinds[name][2])
        return "3"
    if len(menu) > 1 and (not arguments or rng.random() < 0.4):
        call["name"] = rng.choice([name for name in menu if name != call["name"]])
        return "112"
    if not arguments:
        task.answer.append(call)
        return "3"
    name = rng.choice(list(arguments))
    old = arguments.pop(name)
    if rng.random() < 0.6:
        kind, _, values = made.kinds[name]
        arguments[name] = next(value for value in iter(lambda: sample_value(rng, kind, values), None)
                               if value != old)
    return "112"


def example(rng):
    """One example, (chat messages, completion), of one of the three roles."""
    spec = generator.sample_spec(rng)
    role = rng.choices(("solver", "generator", "judge"), weights=(0.70, 0.20, 0.10))[0]
    if role == "generator":
        task, menu = make_task(rng, spec, lean=True)
        if rng.random() < 0.15:
            spec = replace(spec, domain=generator.OWN_DOMAIN, menu=task.tools)
        return generator.prompt(spec), generator_text(task, menu)
    spec = replace(spec, tools=max(spec.calls, rng.choice((1, 2, 2, 3, 3, 4, 4, 5, 6, 8))))
    if role == "judge":
        task, menu = make_task(rng, spec)
        scores = "4555" if rng.random() < 0.5 else damage(rng, task, menu)
        return curriculum.judge_prompt(task), rng.choice(scores)
    if rng.random() < 0.08:
        spec = replace(spec, calls=0, context="single_turn")
    task, menu = make_task(rng, spec)
    return solver.prompt(task.question, task.tools), solver_text(task, menu)


def examples(seed, step, size):
    """The `size` examples of a step. They depend on nothing else, so that a run can go on
    anywhere."""
    return [example(random.Random(f"{seed} {step} {n}")) for n in range(size)]
