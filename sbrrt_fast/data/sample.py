"""The built-in sample: made-up rows that let everything run without the real task files.

A sample and nothing more: a seeded grammar writes it, some of its labels are wrong on purpose,
and no number reported for this project comes from it. Its files have the names and the format of
the course data, so the same reader reads them.
"""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

from sbrrt_fast.data.task import BUILTIN_TASKS, Split
from sbrrt_fast.errors import DataError, OutputError
from sbrrt_fast.files import make_folder, write_text

SAMPLE_VERSION = 1  # names the cached folder: raise it when the rows change
NUM_ROWS: dict[Split, int] = {"train": 400, "dev": 120, "test": 60}

Row = tuple[tuple[str, ...], str]  # texts, label as written


def sample_dir() -> Path:
    """Folder of the sample in the user's cache, written if it is not (completely) there.

    It is ``sbrrt_fast/sample-v<version>`` below ``$XDG_CACHE_HOME`` or ``~/.cache``.

    Raises:
        DataError: the folder cannot be written.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "sbrrt_fast" / f"sample-v{SAMPLE_VERSION}"
    files = [file for task in BUILTIN_TASKS.values() for file in task.files.values()]
    if not all((folder / file).is_file() for file in files):
        try:
            write_sample(folder)
        except OutputError as error:
            raise DataError(
                f"the built-in sample: {error}; set XDG_CACHE_HOME to a folder that can be written"
            ) from None
    return folder


def write_sample(directory: str | Path, seed: int = 0) -> None:
    """Write train, dev and test files of every built-in task; the seed decides every byte.

    Each file appears whole or not at all. No two rows of a task, over all splits, hold the same
    texts.
    """
    directory = Path(directory)
    make_folder(directory)
    for name, make_row in _GRAMMARS.items():
        rng = Random(f"{name} {seed}")
        rows = _distinct_rows(rng, make_row, sum(NUM_ROWS.values()))
        for split, num_rows in NUM_ROWS.items():
            part, rows = rows[:num_rows], rows[num_rows:]
            rng.shuffle(part)
            write_text(
                directory / BUILTIN_TASKS[name].files[split], _file_text(rng, name, split, part)
            )


def _distinct_rows(rng: Random, make_row: Callable[[Random, int], Row], num_rows: int) -> list:
    """``num_rows`` rows with different texts; row i is of kind i, which balances the labels."""
    rows: dict[frozenset[str], Row] = {}
    while len(rows) < num_rows:
        row = make_row(rng, len(rows))
        rows.setdefault(frozenset(row[0]), row)
    return list(rows.values())


def _file_text(rng: Random, name: str, split: Split, rows: list[Row]) -> str:
    """The split's file, with the course files' oddities: index columns and leading spaces."""
    task, buffer = BUILTIN_TASKS[name], io.StringIO()
    is_test, space = split == "test", "" if task.is_pair else " "
    index_columns = [""] if not is_test else ["0", ""] if not task.is_pair else ["0"]
    label_column = [] if is_test else [task.label_column]
    writer = csv.writer(buffer, delimiter="\t", lineterminator="\n")
    writer.writerow([*index_columns, task.id_column, *task.text_columns, *label_column])
    for i, (texts, label) in enumerate(rows):
        index = [i + 1, float(i)] if len(index_columns) == 2 else [i]
        row_id = f"{rng.getrandbits(100):025x}"
        label_field = [] if is_test else [label]
        writer.writerow([*index, row_id, *(space + text for text in texts), *label_field])
    return buffer.getvalue()


def _options(text: str, separator: str = "|") -> list[str]:
    """The options in a text, which may be wrapped anywhere."""
    return [" ".join(option.split()) for option in text.split(separator)]


def _wordings(block: str) -> list[list[str]]:
    """Things separated by ``;``, each with several wordings."""
    return [_options(thing) for thing in _options(block, ";")]


# How good an adjective says something is, -2 to 2.
_ADJECTIVES = {
    -2: _options("""unbearable|dreadful|insulting|excruciating|abysmal|atrocious|worthless|
        unwatchable|appalling|wretched|disastrous|revolting"""),
    -1: _options("""clumsy|thin|predictable|tired|bland|uneven|shallow|stale|sluggish|forgettable|
        dull|hollow"""),
    0: _options("""ordinary|conventional|average|routine|unremarkable|passable|standard|middling|
        acceptable|typical|so-so|workmanlike"""),
    1: _options("""pleasant|charming|neat|warm|lively|likeable|clever|tidy|engaging|amusing|
        enjoyable|solid"""),
    2: _options("""dazzling|masterful|unforgettable|superb|breathtaking|magnificent|exquisite|
        stunning|glorious|brilliant|flawless|extraordinary"""),
}
_ASPECTS = _options("""script|lead performance|score|camera work|final act|dialogue|pacing|staging|
    opening hour|supporting cast|editing|plot|central romance|set design|humour|ending""")
_GENRES = _options("""thriller|family comedy|courtroom drama|ghost story|road movie|western|
    heist picture|costume drama|documentary|space opera|love story|war film""")
_PLAIN = _options("""The {aspect} is {adjective} from start to finish|A {adjective} {genre}|
    Here is a {genre} whose {aspect} is {adjective}|I found the {aspect} {adjective}|
    What a {adjective} {genre} this turned out to be|Everything about the {aspect} is {adjective}|
    The so-called "{genre}" is {adjective} , above all its {aspect}""")
_AGREEING = _options("""The {aspect} is {adjective} and the {aspect2} is {adjective2}|
    A {adjective} {genre} with a {adjective2} {aspect}|
    {adjective} and {adjective2} , this {genre} lives from its {aspect}""")
_CONTRAST = _options("""The {aspect} may be {other} , but the {genre} as a whole is {adjective}|
    Although the {aspect} is {other} , the result is {adjective}|
    One {other} moment aside , this is a {adjective} {genre}""")
_NEGATED = {  # by what the sentence says, -2 to 2: its wording and the grade of its adjective
    -2: ("There is nothing {adjective} in this {genre} , it is a waste of an evening", 1),
    -1: ("The {aspect} is far from {adjective}", 2),
    0: ("The {aspect} is neither {adjective} nor {opposite}", 1),
    1: ("The {aspect} is anything but {adjective}", -1),
    2: ("I have rarely seen a {genre} less {adjective} , I want to see it again at once", -1),
}


def _fill(rng: Random, template: str, grade: int, other_grade: int = 0) -> str:
    """A template's sentence with adjectives of ``grade``, and of ``other_grade`` for ``other``."""
    aspect, aspect2 = rng.sample(_ASPECTS, 2)
    adjective, adjective2 = rng.sample(_ADJECTIVES[grade], 2)
    text = template.format(
        aspect=aspect,
        aspect2=aspect2,
        adjective=adjective,
        adjective2=adjective2,
        opposite=rng.choice(_ADJECTIVES[-grade]),
        other=rng.choice(_ADJECTIVES[other_grade]),
        genre=rng.choice(_GENRES),
    )
    return re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", text[0].upper() + text[1:])


def _sentiment_row(rng: Random, kind: int) -> Row:
    """A sentence of class ``kind % 5``; one label in twelve moves by one."""
    label = kind % 5
    grade, form = label - 2, rng.random()
    if form < 0.4:
        text = _fill(rng, rng.choice(_PLAIN), grade)
    elif form < 0.65:
        text = _fill(rng, rng.choice(_AGREEING), grade)
    elif form < 0.85:
        text = _fill(rng, rng.choice(_CONTRAST), grade, -grade or rng.choice([-1, 1]))
    else:
        template, negated_grade = _NEGATED[grade]
        text = _fill(rng, template, negated_grade)
    if rng.random() < 1 / 12:
        label = min(4, max(0, label + rng.choice([-1, 1])))
    return (f"{text} .",), str(label)


_FACTS = _options("""It follows two brothers who inherit a lighthouse on a cold coast .|
    Most of the story takes place on a night train between two small towns .|
    The film opens with a long shot of an empty market square .|
    A retired detective is asked to look into the theft of a painting .|
    I watched it with my sister on a rainy afternoon .|
    The director made two short films before this one .|
    Halfway through , the action moves from the farm to the city .|
    It runs for a little more than two hours , with a break in the middle .|
    There is a subplot about a lost dog and a letter that was never sent .|
    The music was recorded by a student orchestra .|
    A neighbour turns up every now and then to ask for sugar .|
    The screenplay is based on a novel that I have not read .""")
_OPINIONS = _options("""The {aspect} is {adjective} .|
    I thought the {aspect} was {adjective} and the {aspect2} {adjective2} .|
    For a {genre} , the {aspect} is remarkably {adjective} .|
    Then comes a {adjective} scene that says all about the {aspect} .|
    My friends and I agreed that the {aspect} was {adjective} .|
    It takes a special talent to make the {aspect} this {adjective} .""")
_CONCESSIONS = _options("""To be fair , the {aspect} is {adjective} .|
    One critic called it {adjective} , which I cannot understand .|
    Somebody next to me said the {aspect} was {adjective} , and I disagree .|
    From the trailer I expected something {adjective} .""")


def _review_row(rng: Random, kind: int) -> Row:
    """A review of 15 to 21 sentences, of class ``kind % 2``; one label in twenty is wrong."""
    label = kind % 2
    sign = 2 * label - 1

    def judged(templates: list[str], direction: int, fewest: int, most: int) -> list[str]:
        count = rng.randint(fewest, most)
        return [
            _fill(rng, rng.choice(templates), direction * rng.choice([1, 2])) for _ in [0] * count
        ]

    sentences = judged(_OPINIONS, sign, 5, 7) + judged(_CONCESSIONS, -sign, 3, 5)
    sentences += rng.sample(_FACTS, rng.randint(7, 9))
    rng.shuffle(sentences)
    return (" ".join(sentences),), str(_flip(rng, label))


def _flip(rng: Random, label: int) -> int:
    return 1 - label if rng.random() < 1 / 20 else label


_INTENTS = _wordings("""How do I start with {x}?|
    What is the best way for a beginner to get into {x}?|
    Where should someone without experience begin with {x}?;
    How much money does {x} cost?|Is {x} an expensive hobby?|What do I have to pay to take up {x}?;
    How long does it take to become good at {x}?|How many years do people need to master {x}?|
    When will I be skilled at {x} if I practise daily?;
    Is {x} dangerous?|What are the risks of {x}?|How likely are injuries in {x}?;
    Can you earn a living with {x}?|How do people make money from {x}?|
    Is it possible to turn {x} into a career?;
    Why do so many people love {x}?|What makes {x} so popular?|
    What is it that draws people to {x}?;
    Which book about {x} should I read?|What are some good books on {x}?|
    Can anyone recommend literature about {x}?;
    Where was {x} invented?|What is the history of {x}?|How did {x} come into being?;
    Am I too old for {x}?|Is there an age limit for {x}?|Can I take up {x} at sixty?;
    Is {x} good for your health?|What are the health benefits of {x}?|
    Does {x} keep you fit and well?""")
_SUBJECTS = _wordings("""playing the violin|the violin;chess|the game of chess;
    baking bread|making bread at home;rock climbing|climbing rocks;
    scuba diving|diving with a tank;pottery|making clay pots;
    long distance running|running marathons;bird watching|watching wild birds;
    horse riding|riding horses;astronomy|looking at the stars;beekeeping|keeping bees;
    sailing|sailing small boats;oil painting|painting with oils;knitting|knitting with wool;
    growing vegetables|vegetable gardening;film photography|taking pictures on film;
    skiing|going down slopes on skis;yoga|doing yoga;juggling|learning to juggle;
    wood carving|carving wood""")


def _question_row(rng: Random, kind: int) -> Row:
    """Two questions, duplicates for odd ``kind``; one label in twenty is wrong."""
    intent, other_intent = rng.sample(_INTENTS, 2)
    subject, other_subject = rng.sample(_SUBJECTS, 2)
    label, form = kind % 2, rng.random()
    second_intent = intent if label or form < 0.4 else other_intent
    second_subject = subject if label or form >= 0.5 else other_subject
    first = second = _question(rng, intent, subject)
    while second == first:
        second = _question(rng, second_intent, second_subject)
    return (first, second), str(float(_flip(rng, label)))


def _question(rng: Random, intent: list[str], subject: list[str]) -> str:
    return rng.choice(intent).format(x=rng.choice(subject))


_SCENES = [  # who, does what, where
    [_wordings(part) for part in scene.split("/")]
    for scene in (
        """a chef|a cook;a grandmother|an old woman;a waiter|a man who waits tables/
        is slicing a tomato|cuts up a tomato;is stirring soup|mixes soup in a pot;
        is washing plates|cleans the dishes;is peeling potatoes|takes the skin off potatoes/
        in a small kitchen|in a tiny kitchen;at an open fire|over an open fire;
        in a hotel|at a hotel""",
        """a puppy|a young dog;a white horse|a horse with a white coat;a kitten|a little cat/
        is chasing a ball|runs after a ball;is drinking water|takes a drink of water;
        is sleeping|takes a nap;is jumping a fence|leaps over a fence/
        in a green field|on a meadow;by the river|on the river bank;
        behind the barn|at the back of the barn""",
        """a boy|a young lad;a street musician|a busker;a bearded man|a man with a beard/
        is playing the guitar|strums a guitar;is singing a ballad|performs a slow song;
        is beating a drum|hits a drum;is tuning a piano|sets the pitch of a piano/
        on a stage|up on the stage;in a subway station|inside a metro station;
        in front of a crowd|before many people""",
        """the president|the head of state;the finance minister|the minister of finance;
        the central bank|the national bank/
        announces new taxes|says there will be new taxes;rejects the budget|turns down the budget;
        cuts interest rates|lowers interest rates;meets union leaders|holds talks with unions/
        in the capital|in the capital city;after the election|following the vote;
        during the summit|at the summit""",
    )
]
_PART_WEIGHTS = (1.25, 2.5, 0.75)  # who, does what, where; being of one scene adds 0.5
_SHARED_PARTS = (  # which parts two sentences share, by kind: labels spread over 0 to 5
    (True, True, True),
    (True, True, False),
    (False, True, True),
    (False, True, False),
    (True, False, True),
    (True, False, False),
    (False, False, True),
    (False, False, False),
    None,  # not even the scene
)


def _similarity_row(rng: Random, kind: int) -> Row:
    """Two sentences and their similarity from 0 to 5: what they share, plus noise (sd 0.35)."""
    shared = _SHARED_PARTS[kind % len(_SHARED_PARTS)]
    scene, other_scene = rng.sample(_SCENES, 2)
    first, others = zip(*(rng.sample(part, 2) for part in scene), strict=True)
    if shared is None:
        second, score = [rng.choice(part) for part in other_scene], 0.0
    else:
        second = [a if same else b for a, b, same in zip(first, others, shared, strict=True)]
        score = 0.5 + sum(w for w, same in zip(_PART_WEIGHTS, shared, strict=True) if same)
    score = min(5.0, max(0.0, score + rng.gauss(0, 0.35)))
    first_text = second_text = _scene_sentence(rng, first)
    while second_text == first_text:
        second_text = _scene_sentence(rng, second)
    return (first_text, second_text), f"{round(score * 5) / 5:.1f}"


def _scene_sentence(rng: Random, parts: Sequence[list[str]]) -> str:
    text = " ".join(rng.choice(wordings) for wordings in parts)
    return f"{text[0].upper()}{text[1:]}."


_GRAMMARS: dict[str, Callable[[Random, int], Row]] = {
    "sst": _sentiment_row,
    "para": _question_row,
    "sts": _similarity_row,
    "cfimdb": _review_row,
}
