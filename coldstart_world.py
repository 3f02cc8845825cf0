"""The made-up world of the cold start: tasks of all domains, and what the three roles say to them.

It is wide, and its names are put together afresh for every task, so that nothing can be learnt by
heart: what remains to be learnt is to copy from menu and question, and to keep to the format.
Nothing of it comes from a benchmark.

    task       menu of tools, question, calls        `make_task`
    replies    of Solver, Generator and judge        `solver_text`, `generator_text`, `damage`
    example    prompt and reply of one of the roles  `example`
"""
import json
import random
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

import curriculum
import generator
import solver
from verify import Task

RECORD = "coldstart.json"      # beside the weights: settings and ROLES that made them, the losses
ROLES = {"solver": 0.7, "generator": 0.2, "judge": 0.1}     # shares of the examples
GIVEN_MENU = 0.15         # of the Generator's examples: the prompt brings the tools
NO_TOOL_FITS = 0.08       # of the Solver's examples
MENU_SIZES = (1, 2, 2, 3, 3, 4, 4, 5, 8)      # of the Solver's and the judge's
SOUND = 0.5               # of the judge's examples

# ---------------------------------------------------------------------------------------------
# Words

# Verbs of tools | what people say beside them | kinds of the parameters that they mostly take.
# Verbs of a line mean the same: a menu never holds two of them for one noun.
VERBS = """
get fetch retrieve show view read load query | show_me give_me tell_me_about | code place date enum
find search lookup browse | look_for hunt_for look_up | topic place enum number limit date year
list enumerate | list_all go_through | limit enum date place person
create add make register generate insert | set_up open | title person date text enum flag
delete remove erase discard | get_rid_of throw_out | code title flag
update edit change modify adjust | fix alter | code enum number text title
book reserve | hold | place date time count person
order buy purchase | get_me | title count enum email
cancel revoke withdraw | call_off | code date person text
send deliver dispatch forward | pass_on | email text person topic
share publish post | put_out | person topic url flag
check verify validate confirm | make_sure_of | code date place email
calculate compute estimate | work_out figure_out | number count year amount
predict forecast project | foresee | place date number limit
compare contrast | weigh_up | origin target year enum
convert transform | turn_over | number origin target enum
translate | put_into_another_language | text enum
track monitor follow watch | keep_an_eye_on | code place date
schedule plan arrange | set_a_date_for | date time person place title
start launch run begin | kick_off | code time enum flag
stop halt end | shut_down | code time flag
enable activate | turn_on switch_on | title enum time
disable deactivate | turn_off switch_off | title enum time
rate score | give_marks_to | number title person text
export download save | get_a_file_of | enum url date flag
import upload | bring_in | url enum title
assign allocate | hand_over | person code date
pay settle | take_care_of | number code enum
analyze inspect examine | look_into | topic date enum year
recommend suggest propose | come_up_with | topic place enum number
count tally | tell_me_the_number_for | topic date enum year
sort rank | put_in_order | enum limit
merge combine join | put_together | origin target title
copy duplicate clone | make_a_copy_of | code target title
archive store | put_away | code date flag
restore recover | bring_back | code date
rename relabel | give_a_new_name_to | code title
lock secure | close_off | code time
renew extend | prolong | code date count
approve accept | say_yes_to | code person text
reject decline | say_no_to | code person text
scan detect | run_a_scan_of | url enum flag
sync refresh | bring_up_to_date | email flag time
encrypt encode | protect | text enum
notify alert invite | let_people_know_about | person email text date time
"""
VERBS = [[part.split() for part in line.split("|")] for line in VERBS.strip().split("\n")]
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
    version type limits plan archive rating cost location""".split()
MODIFIERS = """daily weekly monthly public private nearby active recent upcoming shared local
    digital annual online premium family backup regional custom pending global mobile winter
    internal temporary featured random legacy secondary quick""".split()
KINDS = {  # kind -> names of its parameters | wordings of a value ({w}: the name) | values
    "place": "city location town place region address area city_name venue site"
             "| in {v}; near {v}; around {v};. I am in {v}|{place};{place};{place};{Word}",
    "origin": "origin from start source departure_city from_city start_point| from {v}"
              "|{place};{place};{Word}",
    "target": "destination to target arrival_city to_city end_point| to {v}|{place};{place};{Word}",
    "person": "name customer user person patient employee author owner client full_name username "
              "guest_name contact assignee| for {v}; belonging to {v}; of {v};. My name is {v}"
              "|{first};{first} {last};{first} {last};{word}{digit}",
    "date": "date day start_date due_date check_in when delivery_date end_date from_date"
            "| on {v}; for {v}; dated {v};. It has to be {v}"
            "|%Y-%m-%d;%Y-%m-%d;%d %B %Y;%B %d, %Y;%m/%d/%Y;%d.%m.%Y;next %A;%A;%B %d;tomorrow",
    "time": "time hour start_time at departure_time alarm| at {v}"
            "|%H:%M;%H:%M;{digit}:%M pm;{digit}am;noon",
    "code": "id code reference order_id tracking_number sku account_number ticket_id serial key "
            "item_id user_id postal_code uuid ref symbol"
            "| with {w} {v}; number {v}; {v};. The {w} I got is {v}"
            "|{letters}-{number};{letters}{number};{number}{digit}{number};{word}_{number}"
            ";{letters};{digit}{word}{number}",
    "email": "email recipient_email contact_email mail to_address"
             "| via {v}; to {v};. You reach me at {v}"
             "|{word}.{thing}@{adjective}.com;{word}{digit}@{word}.org;{adjective}@{thing}.net",
    "url": "url link website image_url source_url| at {v}; from {v}"
           "|https://{word}.com/{thing};https://www.{word}.org/{number};www.{thing}{word}.net",
    "topic": "topic subject query keyword q theme category interest search_term tag"
             "| about {v}; on {v}; related to {v};. What interests me is {v}"
             "|{thing};{adjective} {thing};{adjective} {thing};{word} {thing};{word}",
    "text": "message text note content comment description reason body caption"
            '| saying "{v}"; with the {w} "{v}"; that reads "{v}"'
            "|the {thing} is ready for pickup;please bring the {adjective} {thing};moved to the "
            "{adjective} room;running {digit} minutes late;see you at the {thing} club;thanks for "
            "the {thing} lesson;need more {thing} before Friday;do not forget the {thing};all good "
            "with the {adjective} {thing};happy birthday, {first};{first} starts soon",
    "title": "title book movie song product_name item label event_name"
             '| called "{v}"; named {v}; titled "{v}"'
             "|The {Adjective} {Thing};{Word} {thing};{Adjective} {Word};{Thing} {digit};{Word}",
    "count": "count quantity guests people nights copies seats rows pages days items qty tickets "
             "duration_minutes| for {v} {w}; with {v} {w}; and {v} {w}|",
    "limit": "limit max_results top_n page per_page n max offset| with at most {v} results|",
    "year": "year season_year release_year birth_year from_year| in {v}; from {v}|",
    "number": "price amount budget weight height rate temperature distance radius latitude value "
              "threshold score percentage longitude total x||",
    "amount": "quantity dose depth duration weight volume length distance period range width"
              "| of {v}; for {v}; with {v}"
              "|{digit} kg;{number} km;{digit} hours;{digit} weeks;{number} ml;{digit}0 minutes"
              ";{digit}0%;{digit}.5 miles;{number} dollars;{digit} GB",
    "flag": "include_tax verbose notify express overwrite recursive gift_wrap is_public round_trip "
            "pet_friendly safe_search draft breakfast_included auto_renew open_now show_hidden"
            "| with {w} turned {v}|",
    "enum": "unit units sort_order sort_by priority size format status color currency language "
            "lang cabin mode gender level type frequency visibility role payment_method cuisine "
            "genre severity| in {v}; as {v}; with {v} {w}|"}
KINDS = {kind: [part.split(";") if n else part.split() for n, part in enumerate(text.split("|"))]
         for kind, text in KINDS.items()}
ENUMS = """metric imperial; celsius fahrenheit kelvin; asc desc; price rating distance newest;
    low medium high urgent; small medium large; pdf csv json xml; open closed pending;
    red green blue black white; USD EUR GBP JPY CHF INR; English Spanish French German Swahili;
    en es fr de pt; economy business first; auto manual eco sport; male female;
    beginner intermediate advanced; basic standard premium; daily weekly monthly; public private;
    admin editor guest; card cash paypal transfer; Thai Italian Mexican Ethiopian;
    comedy thriller drama horror; minor major critical"""
ENUMS = dict(zip(KINDS["enum"][0], map(str.split, ENUMS.split(";")), strict=True))
TYPES = {"flag": ("boolean", "bool"), "count": ("integer", "int"), "limit": ("integer", "int"),
         "year": ("integer", "int"), "number": ("number", "float")}     # JSON's name and Python's
SYLLABLES = """ba bri cal cor da del dra el fen fi gal gor hal hu in jor ka kel kri la lo lum ma mi
    mor na nex no or pa pel qua ra rin ro sa sen sol ta tor tri u va vel vor wi xa yan zen zi zo
    """.split()
PLACES = """Oslo;Rome;Lima;Cairo;Kyoto;Delhi;Berlin;Lisbon;Prague;Warsaw;Denver;Toronto;Quito;Accra;
    São Paulo;Zürich;Kraków;Málaga;Reykjavík;New Orleans;Cape Town;Buenos Aires;Ho Chi Minh City;
    San José;Göteborg;Łódź;Montréal;Tel Aviv;Abu Dhabi;Kuala Lumpur;Addis Ababa;Salt Lake City;
    Saint Petersburg;Thessaloniki;Antwerp;Bilbao;Bordeaux;Florence;Guadalajara;Hyderabad;Izmir;
    Jakarta;Kigali;Leeds;Marrakech;Naples;Osaka;Porto;Riga;Sapporo;Tbilisi;Utrecht;Valparaíso;
    Wellington;Yerevan;Zagreb;Norway;Kenya;Peru;Vietnam;Portugal;Morocco;New Zealand;South Korea;
    Bavaria;Tuscany;Ontario;Queensland;Texas;Brooklyn;12 Harbour Street;48 Elm Avenue;
    Rue de Rivoli 7;Platform 9;the old town;Terminal 2"""
PLACES = [" ".join(place.split()) for place in PLACES.split(";")]
FIRST_NAMES = """Anna Ben Carla David Emma Felix Grace Hugo Iris Jack Leo Mia Noah Olga Paul Rosa
    Sam Tina Vera Zoë José Łukasz Søren Aïcha Björn Chloé Dmitri Eszter Fatima Giulia Hiroshi Ingrid
    Jamal Keiko Lakshmi Mateo Nguyen Oluwaseun Priya Qiang Rafael Sinead Tariq Ulrike Wei Xavier
    Yusuf Zanele Amara Bogdan Concetta Dilnoza""".split()
LAST_NAMES = """Miller Okafor Tanaka García Müller Rossi Novák Kowalski Andersson Haddad Silva Kim
    Dubois Ivanova Patel Yılmaz O'Connor Nakamura Mbeki Lindqvist Papadopoulos Fernández Cohen Sato
    Nowak Johansson Ferrari Adeyemi Murphy""".split()
THINGS = """river lantern garden orchid compass violin harbor meadow copper glacier falcon bicycle
    pottery chess sailing coffee jazz robotics astronomy yoga ceramics origami beekeeping geology
    opera cycling bread whales castles volcanoes photography folklore mosaics tennis knitting
    bridges dinosaurs rockets typography""".split()
ADJECTIVES = """silent golden northern crooked blue hidden ancient bright gentle frozen crimson
    wandering modern marine urban wild vintage electric hollow lucky tropical""".split()
SAID_OF_TOOLS = ("{v} the {n}", "{v} a {n}", "{s} the {n}", "{s} a {n}", "Use this to {v} a {n}",
                 "Lets the user {v} a {n} and returns the result", "{s} the current {n}",
                 "Call this when the user wants to {v} a {n}", "A service for {n} data: {v}",
                 "{s} one {n}. An error comes back where it is unknown or the input is incomplete",
                 "This operation helps teams to {v} any {n} that they are allowed to see; results "
                 "come in pages, newest first")
SAID_OF_PARAMETERS = ("The {w} of the {n}", "{w} of the {n}", "The {w}", "{w} to use", "Which {w}",
                      "Specifies the {w} for the {n}", "The {w} that the user asks for")
EXAMPLES = (", e.g. {}", " (for example {})", ". Form: {}", " such as {}")
PLAIN = (" with {w} {v}", ", {w}: {v}", " using {v} as the {w}", " where the {w} is {v}",
         " ({w} {v})", ", {w} = {v}", " and {v} for the {w}", ", {w} {v}", " and set {w} to {v}",
         ". The {w} is {v}", ". Use {v} as {w}", ". For the {w}, take {v}", ", {w} should be {v}")
OPENINGS = ("Please ", "Can you ", "I need you to ", "I want to ", "Could you please ", "Help me ",
            "I would like to ", "Hey, ", "Would you ", "", "", "", "Kindly ", "Let's ",
            "My task for today: ", "I was wondering if you could ", "We have to ")
PRETEXTS = ("I am working on something with {first}. ", "It has been a long week. ", "Hello! ",
            "{first} asked me about this. ", "I just came back from {place}. ", "Quick one. ",
            "For a project in our office: ", "I never did this before. ")
AND_THEN = (". Also, ", " and then ", ", and also ", ". After that, ", "; next, ", " and ")
AGAIN = (", and once more", "; the same again", ", and a second time", ". Do it again")
ASKING = ("Sure, anything else?", "Of course. What are the details?", "Go on, please.",
          "Happy to help. What do you need exactly?")
ASKING_FOR = ("What is the {w}?", "Sure. Which {w}?", "I still need the {w}.", "And the {w}?")


# ---------------------------------------------------------------------------------------------
# Values and names


def invented(rng):
    """A word that nobody has seen: two or three syllables."""
    return "".join(rng.choices(SYLLABLES, k=rng.randint(2, 3)))


def fill(rng, form, lean=False):
    """A form such as "the {Adjective} {thing}" with random words in its gaps; `lean`: no invented
    ones."""
    words = {"thing": rng.choice(THINGS), "adjective": rng.choice(ADJECTIVES),
             "word": rng.choice(THINGS) if lean else invented(rng)}
    words |= {name.capitalize(): word.capitalize() for name, word in words.items()}
    letters = "".join(rng.choices("ABCDEFGHKLMNPRSTVXZ", k=rng.randint(2, 4)))
    return form.format(**words, letters=letters, place=rng.choice(PLACES), digit=rng.randint(2, 9),
                       number=rng.randint(10, 9999), first=rng.choice(FIRST_NAMES),
                       last=rng.choice(LAST_NAMES))


def sample_value(rng, kind, values=(), lean=False):
    """A JSON value of the kind; `values` are those of an enum, `lean` as in `fill`."""
    if kind == "enum":
        return rng.choice(values)
    if kind == "flag":
        return rng.random() < 0.6
    if kind in ("count", "limit"):
        return rng.choice((rng.randint(2, 9), rng.randint(2, 19), rng.randint(20, 5000)))
    if kind == "year":
        return rng.randint(1950, 2029)
    if kind == "number":
        return rng.choice((rng.randint(1, 20000), round(rng.uniform(0, 500), 2),
                           round(rng.uniform(-90, 180), rng.randint(1, 4))))
    form = rng.choice(KINDS[kind][2])
    if kind in ("date", "time"):
        moment = datetime(2023, 1, 1, 8) + timedelta(rng.randrange(1500), rng.randrange(168) * 300)
        form = moment.strftime(form)
    return fill(rng, form, lean)


def styled(words, style):
    """A name of several words as a program writes it.

    >>> [styled(["get", "tax", "rate"], style) for style in ("camel", "Pascal", "snake", "kebab")]
    ['getTaxRate', 'GetTaxRate', 'get_tax_rate', 'get-tax-rate']
    """
    if style in ("camel", "Pascal"):
        words = [word.capitalize() if n or style == "Pascal" else word
                 for n, word in enumerate(words)]
    return {"snake": "_", "kebab": "-"}.get(style, "").join(words)


def tool_name(rng, verb, noun, style):
    """The name of a tool that does `verb` to a noun of one or more words."""
    if style == "dotted":          # weather.getForecast, weather.forecast_get
        return f"{noun[0]}.{styled([verb, *noun[1:]], rng.choice(('camel', 'snake')))}"
    words = [verb, *noun] if rng.random() < 0.85 else [*noun, verb]
    if len(noun) > 1 and rng.random() < 0.06:
        words = noun
    elif rng.random() < 0.04:
        words = [*words, "by", rng.choice(("id", "name", "date", "city", "query"))]
    return styled(words, style)


def third_person(verb):
    """
    >>> [third_person(verb) for verb in ("get", "notify", "fetch")]
    ['gets', 'notifies', 'fetches']
    """
    if verb.endswith("y") and verb[-2] not in "aeou":
        return verb[:-1] + "ies"
    return verb + ("es" if verb.endswith(("s", "sh", "ch", "x")) else "s")


# ---------------------------------------------------------------------------------------------
# Tools


@dataclass
class Made:
    """A tool of the world, and what a question needs to know of it."""

    tool: dict            # as in a menu
    verbs: list           # words for what it does, its own first
    noun: str             # and to what
    parameters: dict      # name -> (kind, the name in words, values of an enum)


def make_parameters(rng, kinds, noun, style, most):
    """{name: (kind, words, values of an enum)}, at most `most` of them: each time other ones."""
    found = {}
    for _ in range(min(rng.choice((0, 0, 1, 1, 2, 2, 2, 3, 3, 4, 6)), most)):
        kind = rng.choice(kinds if rng.random() < 0.7 else list(KINDS))
        base = rng.choice(KINDS[kind][0])
        words = base.split("_")
        if rng.random() < 0.1 and len(words) == 1:
            words = [noun[-1], *words]
        elif rng.random() < 0.05:
            words = [invented(rng), *words[-1:]]
        found.setdefault(styled(words, style), (kind, " ".join(words), ENUMS.get(base, ())))
    return found


def schema(rng, kind, words, values, noun, described):
    """The schema of a parameter, as a menu has it."""
    found = {"type": TYPES.get(kind, ("string", "str"))[described == "python"]}
    listed = rng.random() < 0.6
    if values and listed:
        found["enum"] = values
    if described and rng.random() < 0.85:
        text = rng.choice(SAID_OF_PARAMETERS).format(w=words, n=noun)
        if values and not listed:
            text += f": {', '.join(values)}"
        elif rng.random() < 0.3 and kind != "flag":
            text += rng.choice(EXAMPLES).format(sample_value(rng, kind, values))
        found["description"] = text[0].upper() + text[1:]
    return found


def make_tool(rng, verbs, noun, style, described, most):
    """A Made tool.

    Args:
        verbs: a line of VERBS.
        noun: its words.
        style: how its name is written.
        described: whether its parameters are; "python": also with Python's names of types.
        most: parameters it has at most.
    """
    verb, thing = rng.choice(verbs[0]), " ".join(noun)
    inner = "camel" if style in ("camel", "Pascal") and rng.random() < 0.9 else "snake"
    parameters = make_parameters(rng, verbs[2], noun, inner, most)
    key = ""
    if described and parameters and rng.random() < 0.3:
        key = " by " + rng.choice(list(parameters.values()))[1]
    said = rng.choice(SAID_OF_TOOLS[:None if described else 3])
    said = said.format(v=verb, s=third_person(verb), n=thing + key)
    if described and rng.random() < 0.15:      # names that are no parameters
        fields = make_parameters(rng, list(KINDS), noun, inner, 4)
        said += ". Gives back an object with " + (", ".join(fields) or "nothing in it")
    tool = {"name": tool_name(rng, verb, noun, style),
            "description": said[0].upper() + said[1:] + rng.choice(("", ".")),
            "parameters": {name: schema(rng, *parameter, thing, described)
                           for name, parameter in parameters.items()},
            "required": [name for n, name in enumerate(parameters)
                         if rng.random() < (0.6 if n else 0.85)]}
    said = [verb, *(other.replace("_", " ") for other in verbs[0] + verbs[1])]
    return Made(tool, said, thing, parameters)


def make_menu(rng, domain, size, lean):
    """`size` Made tools of a domain; most of them share a verb or a noun with the first.

    Args:
        lean: short descriptions, few parameters and hardly any invented words: the Generator has to
            write it all.
    """
    styles = ("camel", "camel", "snake", "snake", "Pascal", "kebab", "dotted", "flat")
    style = rng.choice(styles[:-1] if lean else styles)
    described = not lean and rng.choice((False, True, True, "python"))
    menu, seen = {}, []
    while len(menu) < size:
        verbs, noun = rng.choice(VERBS), rng.choice(NOUNS[domain]).split("_")
        if rng.random() < 0.35:
            noun = [*noun, rng.choice(ASPECTS)]
        if rng.random() < 0.2:
            noun = [rng.choice(MODIFIERS) if lean or rng.random() < 0.7 else invented(rng), *noun]
        if seen and rng.random() < 0.6:
            verbs, noun = (verbs, seen[0][1]) if rng.random() < 0.6 else (seen[0][0], noun)
        if (verbs, noun) not in seen:
            seen.append((verbs, noun))
            made = make_tool(rng, verbs, noun,
                             style if rng.random() < 0.9 else rng.choice(("camel", "snake")),
                             described, 2 if lean and menu else 4 if lean else 6)
            menu.setdefault(made.tool["name"], made)
    return list(menu.values())


# ---------------------------------------------------------------------------------------------
# Tasks


def make_call(rng, made, lean):
    """A call that gives what is required, and some of the other arguments."""
    return {"name": made.tool["name"],
            "arguments": {name: sample_value(rng, kind, values, lean)
                          for name, (kind, _, values) in made.parameters.items()
                          if name in made.tool["required"] or rng.random() < 0.4}}


def spoken(rng, value, kind):
    """A value as a question writes it."""
    if isinstance(value, bool):
        return rng.choice(("on", "true", "yes") if value else ("off", "false", "no"))
    if isinstance(value, int) and kind != "year":
        if 2 <= value <= 9 and rng.random() < 0.3:
            return "two three four five six seven eight nine".split()[value - 2]
        return f"{value:,}" if rng.random() < 0.3 else str(value)
    if isinstance(value, str) and kind != "text" and rng.random() < 0.12:
        return rng.choice(("'{}'", '"{}"')).format(value)
    return str(value)


def phrases(rng, made, arguments, natural):
    """What a question says of each argument, shuffled now and then: [(phrase, name in words, value
    as it is spoken)]."""
    kinds, found = [made.parameters[name][0] for name in arguments], []
    for (name, value), kind in zip(arguments.items(), kinds):
        # Two values of one kind need their names.
        wordings = [w for w in KINDS[kind][1] if w and natural and kinds.count(kind) == 1] or PLAIN
        words, value = made.parameters[name][1], spoken(rng, value, kind)
        found.append((rng.choice(wordings).format(v=value, w=words), words, value))
    if rng.random() < 0.3:
        rng.shuffle(found)
    return found


def joined(said):
    return "".join(phrase for phrase, _, _ in said)


def conversation(rng, request, said):
    """The request in two messages or more: the agent asks for what the first one left out."""
    cut = rng.randint(0, len(said))
    text, rest = f"User: {request}{joined(said[:cut])}.", said[cut:]
    if len(rest) in (1, 2) and rng.random() < 0.5:
        for _, words, value in rest:
            text += f"\nAgent: {rng.choice(ASKING_FOR).format(w=words)}\nUser: {value}."
        return text
    rest = joined(rest).lstrip(" ,.") or "no, that is all"
    if not any(rest.startswith(value) for _, _, value in said):      # a value keeps its case
        rest = rest[0].upper() + rest[1:]
    return f"{text}\nAgent: {rng.choice(ASKING)}\nUser: {rest}."


def make_question(rng, wanted, calls, context):
    """What a user says who wants the calls.

    Args:
        wanted: the Made tool of each call.
        context: "single_turn" or "multi_turn".
    """
    manner = rng.choice(("natural", "natural", "natural", "plain", "terse"))
    opening = "" if manner == "terse" else rng.choice(OPENINGS)
    if manner != "terse" and rng.random() < 0.2:
        opening = fill(rng, rng.choice(PRETEXTS)) + opening
    text = opening
    for n, (made, call) in enumerate(zip(wanted, calls)):
        said = phrases(rng, made, call["arguments"], manner == "natural")
        verb = made.verbs[0] if rng.random() < 0.4 else rng.choice(made.verbs)
        action = verb + rng.choice((" ", " the ", " a ", " my ")) + made.noun
        if context == "multi_turn":
            return conversation(rng, opening + action, said)
        if n and made is wanted[0]:
            text += rng.choice(AGAIN) + joined(said)
        else:
            text += (rng.choice(AND_THEN) if n else "") + action + joined(said)
    if len(text) < 26:
        text = "right now I need this: " + text
    end = "?" if "you " in opening else rng.choice(("", ".", ".", "!"))
    return text[0].upper() + text[1:] + end


def make_task(rng, spec, lean=False):
    """A sound task for a generator.Spec, and the Made tools of its menu by name. With no calls, no
    tool of the menu fits the question."""
    made = make_menu(rng, spec.domain, spec.tools + (spec.calls == 0), lean)
    wanted = made[:max(1, spec.calls)]
    if spec.calls == 2 and rng.random() < 0.4 and made[0].parameters:
        wanted = [made[0]] * 2
    calls = [make_call(rng, tool, lean) for tool in wanted]
    if len(calls) == 2 and wanted[0] is wanted[1]:      # "the same again" leaves nothing out
        calls[1]["arguments"] = calls[0]["arguments"] | calls[1]["arguments"]
    question = make_question(rng, wanted, calls, spec.context)
    if spec.calls == 0:
        made, calls = made[1:], []
    rng.shuffle(made)
    return (Task(question, [tool.tool for tool in made], calls),
            {tool.tool["name"]: tool for tool in made})


# ---------------------------------------------------------------------------------------------
# What the three roles say


def plan(calls):
    """The calls in short, one a line. Names and values stand here as in menu and answer, with no
    space before them, so that they are the same tokens everywhere.

    >>> plan([{"name": "get_tide", "arguments": {"place": "Oslo", "days": 3}}])
    'get_tide(place="Oslo",days=3)'
    """
    lines = []
    for call in calls:
        given = [f"{name}={json.dumps(value, ensure_ascii=False)}"
                 for name, value in call["arguments"].items()]
        lines.append(f"{call['name']}({','.join(given)})")
    return "\n".join(lines)


def solver_text(task):
    """A Solver's completion that is right."""
    return (f"<think>{plan(task.answer) or 'no tool in the list does this'}</think>\n"
            f"<tool_call_answer>{json.dumps(task.answer, ensure_ascii=False)}</tool_call_answer>")


def generator_text(task, given):
    """A Generator's completion; question, tools and calls copy from the plan before them."""
    tools = "" if given else (
        f"<available_tools>{json.dumps(task.tools, ensure_ascii=False)}</available_tools>\n")
    names = json.dumps([tool["name"] for tool in task.tools], ensure_ascii=False)
    return (f"<think>{names}\n{plan(task.answer)}</think>\n"
            f"<question>{task.question}</question>\n{tools}"
            f"<tool_call_answer>{json.dumps(task.answer, ensure_ascii=False)}</tool_call_answer>")


def damage(rng, task, menu):
    """Spoil the answer of a task. Returns the scores that it then deserves."""
    call = rng.choice(task.answer)
    parameters, arguments = menu[call["name"]].parameters, call["arguments"]
    optional = [name for name in parameters if name not in arguments]
    if optional and rng.random() < 0.5:        # made up, where the question says nothing
        name = rng.choice(optional)
        arguments[name] = sample_value(rng, parameters[name][0], parameters[name][2])
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
        new = sample_value(rng, parameters[name][0], parameters[name][2])
        if new != old:
            arguments[name] = new
    return "112"


def example(rng, ease=0.0):
    """One example, (chat messages, completion), of one of the three roles.

    Args:
        ease: share of easy tasks (few tools, one call).
    """
    spec, role = generator.sample_spec(rng), rng.choices(list(ROLES), weights=ROLES.values())[0]
    if role != "generator":
        spec = replace(spec, tools=max(spec.calls, rng.choice(MENU_SIZES)))
    if rng.random() < ease:
        spec = generator.Spec(spec.domain, "single_turn", rng.randint(2, 3), 1)
    if role == "solver" and rng.random() < NO_TOOL_FITS:
        spec = replace(spec, calls=0, context="single_turn")
    task, menu = make_task(rng, spec, lean=role == "generator")
    if role == "solver":
        return solver.prompt(task.question, task.tools), solver_text(task)
    if role == "judge":
        scores = "4555" if rng.random() < SOUND else damage(rng, task, menu)
        return curriculum.judge_prompt(task), rng.choice(scores)
    given = rng.random() < GIVEN_MENU
    if given:
        spec = replace(spec, domain=generator.OWN_DOMAIN, menu=task.tools)
    return generator.prompt(spec), generator_text(task, given)


def examples(seed, step, steps, size):
    """The `size` examples of a step; the share of easy ones falls from 1 to 0 over the first half
    of the steps. They depend on nothing else, so that a run can go on anywhere."""
    return [example(random.Random(f"{seed} {step} {n}"), max(0.0, 1 - 2 * step / steps))
            for n in range(size)]


def questions(seed, step, steps, size):
    """The questions in those examples: what the audit for overlap reads."""
    said = [(messages[-1]["content"] + completion).rpartition("<question>")[2]
            for messages, completion in examples(seed, step, steps, size)]
    return [text.partition("</question>")[0].partition("\n<available_tools>")[0] for text in said]
