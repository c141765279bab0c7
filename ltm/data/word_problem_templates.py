"""Templates of word problems for `ltm.data.word_problems`; those of train and test share only words.

In a question `{a}` to `{d}` are numbers, `{who}` and `{other}` names, `{thing}` what is counted. In the solution
`{x = a * b}` is a step: it is rendered as `4 * 6 = 24` and defines x. The last step is the answer. A draw of numbers
for which a step is not a positive whole number is rejected.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """A kind of problem. `ranges` has the least and greatest value of each number that is not from 2 to 20."""

    name: str
    question: str
    solution: str
    ranges: Mapping[str, tuple[int, int]] = field(default_factory=dict)


_NAMES = (
    "Ada Adrian Agnes Aisha Albert Alice Amir Amy Anders Andrea Angela Anita Anton Arthur Astrid Beatrice Ben "
    "Bianca Boris Bruno Camille Carl Carmen Carol Cecilia Charles Chloe Clara Claude Connor Daisy Dana Daniel "
    "Daphne David Deborah Dennis Diana Dieter Dominic Dora Duncan Edgar Edith Elena Elias Elise Emil Emma "
    "Erik Esther Eva Fatima Felix Fiona Florence Frank Frida Gabriel Gemma George Gerda Gilbert Giulia Gordon "
    "Grace Greta Gustav Hana Harold Harriet Heidi Helena Henry Hilda Hugo Ida Igor Ingrid Irene Isaac Isabel "
    "Ivan Jacob Jasmine Jens Joan Johanna Jonas Jorge Judith Julian Karla Katrin Keiko Kenneth Kerstin Klaus "
    "Lara Lars Laura Leila Leo Leonard Lily Linda Louis Lucia Lukas Lydia Magnus Malik Marcel Margaret Maria "
    "Marius Martha Matthew Maya Melissa Mia Miguel Milan Miriam Monica Nadia Naomi Natasha Nathan Nicole "
    "Nigel Nina Noah Nora Olaf Olga Oliver Omar Oscar Otto Pamela Patrick Paul Paula Pedro Peter Philip "
    "Phoebe Quentin Rachel Rafael Ralph Ravi Rebecca Regina Robin Roland Rosa Ruben Ruth Sabine Sam Samuel "
    "Sandra Sarah Sebastian Selma Simon Sofia Stefan Susan Sven Sylvia Tamara Tariq Teresa Theo Thomas Tina "
    "Tobias Ulrich Ursula Valerie Vera Victor Vincent Viola Walter Wanda Wendy Wilfred Xenia Yasmin Yusuf "
    "Yvonne Zoe"
)
_THINGS = (
    "acorns almonds apples apricots badges bagels balloons balls bananas baskets beads beans bells biscuits "
    "blankets blocks books bottles bowls bracelets bricks brushes buttons cakes candles caps cards carrots "
    "chairs cherries chestnuts clips coins combs comics cookies crayons cups cushions dolls doughnuts "
    "drawings earrings envelopes erasers feathers figs flags flowers forks gloves grapes hats jars kites "
    "ladders lamps leaves lemons letters magnets maps marbles markers masks medals mittens muffins mugs "
    "mushrooms nails necklaces needles notebooks nuts olives onions oranges paintings pancakes pears pebbles "
    "pencils peppers photos pies pillows plants plates plums postcards posters potatoes pumpkins puzzles "
    "radishes ribbons rings rulers sandwiches scarves seeds shells shirts socks spoons stamps stars stickers "
    "stones straws sweets tiles tomatoes toys trophies umbrellas vases walnuts whistles"
)
NAMES, THINGS = tuple(_NAMES.split()), tuple(_THINGS.split())

TRAIN = (
    Template(
        name="gift",
        question="{who} has {a} {thing}. {other} gives {who} {b} more. How many {thing} does {who} have now?",
        solution="{who} has {x = a + b} {thing}.",
        ranges={"a": (3, 80), "b": (2, 60)},
    ),
    Template(
        name="given away",
        question="{who} has {a} {thing} and gives {b} of them to {other}. How many {thing} does {who} keep?",
        solution="{who} keeps {x = a - b} {thing}.",
        ranges={"a": (10, 90), "b": (2, 60)},
    ),
    Template(
        name="boxes",
        question="{who} buys {a} boxes with {b} {thing} in each box. How many {thing} does {who} buy?",
        solution="{who} buys {x = a * b} {thing}.",
    ),
    Template(
        name="fair shares",
        question="{who} shares {a} {thing} equally among {b} friends. How many {thing} does each friend get?",
        solution="Each friend gets {x = a / b} {thing}.",
        ranges={"a": (6, 120), "b": (2, 12)},
    ),
    Template(
        name="boxes less some",
        question="{who} buys {a} boxes with {b} {thing} in each and loses {c} of the {thing}. How many are left?",
        solution="The boxes hold {x = a * b} {thing}.\nThen {y = x - c} are left.",
        ranges={"a": (2, 12), "b": (3, 15)},
    ),
    Template(
        name="twice as many",
        question="{who} has {a} {thing} and {other} has twice as many. How many {thing} do they have together?",
        solution="{other} has {x = a * 2} {thing}.\nTogether they have {y = a + x}.",
        ranges={"a": (3, 60)},
    ),
    Template(
        name="half as many",
        question="{who} sold {a} {thing} in May and half as many in June. How many {thing} did {who} sell in all?",
        solution="In June {who} sold {x = a / 2} {thing}.\nIn all {who} sold {y = a + x}.",
        ranges={"a": (4, 120)},
    ),
    Template(
        name="change",
        question="{who} buys {a} {thing} for ${b} each and pays with ${c}. How many dollars does {who} get back?",
        solution="The {thing} cost {x = a * b} dollars.\n{who} gets back {y = c - x} dollars.",
        ranges={"a": (2, 9), "b": (2, 9), "c": (20, 100)},
    ),
    Template(
        name="wages",
        question="{who} earns ${a} an hour and works {b} hours a day. How many dollars does {who} earn in {c} days?",
        solution="In a day {who} earns {x = a * b} dollars.\nIn {c} days that makes {y = x * c} dollars.",
        ranges={"a": (8, 20), "b": (2, 8), "c": (2, 6)},
    ),
    Template(
        name="saving",
        question="{who} wants a bicycle for ${a}, has ${b} and saves ${c} a week. How many weeks does that take?",
        solution="{who} still needs {x = a - b} dollars.\nThat takes {y = x / c} weeks.",
        ranges={"a": (60, 200), "b": (10, 80), "c": (4, 20)},
    ),
    Template(
        name="pages",
        question="A book has {a} pages. {who} reads {b} pages a day for {c} days. How many pages are left to read?",
        solution="{who} reads {x = b * c} pages.\nThen {y = a - x} pages are left.",
        ranges={"a": (80, 300), "b": (5, 25), "c": (2, 8)},
    ),
    Template(
        name="two kinds",
        question="{who} buys {a} pens for ${b} each and {c} rulers for ${d} each. How many dollars does that cost?",
        solution="The pens cost {x = a * b} dollars.\nThe rulers cost {y = c * d}.\nTogether {z = x + y} dollars.",
        ranges={"a": (2, 9), "b": (2, 9), "c": (2, 9), "d": (2, 9)},
    ),
    Template(
        name="bus",
        question="There are {a} people on a bus. {b} get off and {c} get on. How many people are on the bus now?",
        solution="After the stop {x = a - b} people stay.\nWith the new ones there are {y = x + c}.",
        ranges={"a": (10, 60)},
    ),
    Template(
        name="rows of trees",
        question="A park has {a} rows of {b} trees. A storm fells {c}, then {d} are planted. How many are there now?",
        solution="There were {x = a * b} trees.\nThe storm leaves {y = x - c}.\nThen there are {z = y + d} trees.",
        ranges={"a": (3, 12), "b": (4, 15)},
    ),
    Template(
        name="three in all",
        question="{who} picks {a} {thing}, {other} picks {b} and their mother {c}. How many {thing} do they pick?",
        solution="{who} and {other} pick {x = a + b}.\nAll together pick {y = x + c} {thing}.",
        ranges={"a": (3, 50), "b": (3, 50), "c": (3, 50)},
    ),
    Template(
        name="more than",
        question="{who} has {a} {thing}. {other} has {b} more than {who}. How many {thing} do the two have together?",
        solution="{other} has {x = a + b} {thing}.\nTogether they have {y = a + x}.",
        ranges={"a": (3, 50), "b": (2, 30)},
    ),
    Template(
        name="fewer than",
        question="{who} has {a} {thing}. {other} has {b} fewer than {who}. How many {thing} do the two have together?",
        solution="{other} has {x = a - b} {thing}.\nTogether they have {y = a + x}.",
        ranges={"a": (10, 60), "b": (2, 30)},
    ),
    Template(
        name="packing",
        question="{who} bakes {a} cookies, eats {b} and packs the rest into bags of {c}. How many bags are filled?",
        solution="There are {x = a - b} cookies to pack.\nThey fill {y = x / c} bags.",
        ranges={"a": (20, 120), "c": (3, 12)},
    ),
    Template(
        name="distance",
        question="{who} rides {a} miles an hour for {b} hours, then walks {c} miles. How many miles is that in all?",
        solution="{who} rides {x = a * b} miles.\nIn all that is {y = x + c} miles.",
        ranges={"a": (6, 18), "b": (2, 6), "c": (2, 9)},
    ),
    Template(
        name="split bill",
        question="A dinner costs ${a} and a taxi ${b}. {c} friends share both equally. How many dollars does each pay?",
        solution="Both together cost {x = a + b} dollars.\nEach pays {y = x / c} dollars.",
        ranges={"a": (20, 120), "b": (5, 40), "c": (2, 8)},
    ),
    Template(
        name="classes",
        question="A school has {a} classes of {b} children. {c} children are ill. How many children are at school?",
        solution="There are {x = a * b} children.\nAt school are {y = x - c}.",
        ranges={"a": (3, 12), "b": (12, 28)},
    ),
    Template(
        name="tickets",
        question="{a} adults pay ${b} each and {c} children pay ${d} each. How much more do the adults pay in all?",
        solution="The adults pay {x = a * b} dollars.\nThe children pay {y = c * d}.\nThe adults pay {z = x - y} more.",
        ranges={"a": (3, 12), "b": (8, 20), "c": (2, 9), "d": (2, 7)},
    ),
    Template(
        name="recipe",
        question="A cake needs {a} eggs. {who} has {b} eggs and bakes {c} cakes. How many eggs are left?",
        solution="The cakes need {x = a * c} eggs.\nThen {y = b - x} eggs are left.",
        ranges={"a": (2, 6), "b": (20, 60), "c": (2, 9)},
    ),
    Template(
        name="albums",
        question="{who} has {a} albums with {b} photos each and puts them all on pages of {c}. How many pages is that?",
        solution="There are {x = a * b} photos.\nThey take {y = x / c} pages.",
        ranges={"a": (2, 12), "b": (6, 24), "c": (2, 9)},
    ),
)

TEST = (
    Template(
        name="garden",
        question="In {who}'s garden grow {a} tulips and {b} roses. {who} cuts {c}. How many flowers still grow there?",
        solution="At first there are {x = a + b} flowers.\nThen {y = x - c} still grow.",
        ranges={"a": (5, 60), "b": (5, 60)},
    ),
    Template(
        name="hens",
        question="Each of {who}'s {a} hens lays {b} eggs a week. How many eggs do they lay in {c} weeks?",
        solution="A week brings {x = a * b} eggs.\nIn {c} weeks that is {y = x * c} eggs.",
        ranges={"a": (3, 12), "b": (3, 7), "c": (2, 8)},
    ),
    Template(
        name="shelves",
        question="A shop puts {a} {thing} evenly on {b} shelves. From one shelf {c} are sold. How many stay on it?",
        solution="A shelf holds {x = a / b} {thing}.\nOn that shelf stay {y = x - c}.",
        ranges={"a": (20, 200), "b": (2, 10), "c": (2, 9)},
    ),
    Template(
        name="train",
        question="A train with {a} cars of {b} seats carries {c} passengers. How many seats are free?",
        solution="The train has {x = a * b} seats.\nFree are {y = x - c} seats.",
        ranges={"a": (3, 12), "b": (20, 60), "c": (30, 150)},
    ),
    Template(
        name="three times",
        question="{who} ran {a} miles last week and three times as far this week. How far is that in both weeks?",
        solution="This week it was {x = a * 3} miles.\nIn both weeks it is {y = a + x} miles.",
        ranges={"a": (2, 40)},
    ),
    Template(
        name="lemonade",
        question="{who} sells {a} cups of lemonade for ${b} each. The lemons cost ${c}. How much is the profit?",
        solution="The cups bring {x = a * b} dollars.\nThe profit is {y = x - c} dollars.",
        ranges={"a": (8, 40), "b": (2, 5)},
    ),
    Template(
        name="team",
        question="{a} girls and {b} boys form teams of {c}. How many teams are there?",
        solution="There are {x = a + b} children.\nThey form {y = x / c} teams.",
        ranges={"a": (6, 40), "b": (6, 40), "c": (2, 11)},
    ),
    Template(
        name="water",
        question="A tank holds {a} liters. {b} buckets of {c} liters and {d} liters more are taken. How much is left?",
        solution="The buckets take {x = b * c} liters.\nTogether {y = x + d} are taken.\nLeft are {z = a - y} liters.",
        ranges={"a": (60, 250), "b": (2, 9), "c": (3, 12)},
    ),
)
