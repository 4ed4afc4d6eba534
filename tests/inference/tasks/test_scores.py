import pytest

from inference.tasks.own import scores


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        (" The  Denver-Broncos! ", "denverbroncos"),  # punctuation goes, and leaves no space
        ("an apple, a day\n", "apple day"),
        ("Theatre", "theatre"),  # an article is a word
        ("the", ""),
    ],
)
def test_answers_are_compared_as_squad_does(text: str, plain: str) -> None:
    assert scores.normalised(text) == plain


@pytest.mark.parametrize(
    ("text", "answers", "em", "f1"),
    [
        ("the Broncos.", ["Denver Broncos", "Broncos"], 1, 1),
        ("Paris in France", ["Paris", "France now"], 0, 0.5),  # 2 * 1 / (3 + 1), and 2 * 1 / (3 + 2)
        ("to be to be", ["to be or not to be"], 0, 0.8),  # words count as often as both have them: 2 * 4 / (4 + 6)
        ("", ["x"], 0, 0),
        ("The", ["a"], 1, 1),  # neither has a word left
    ],
)
def test_exact_match_and_f1_by_hand(text: str, answers: list[str], em: float, f1: float) -> None:
    assert scores.answers({"answers": answers}, [text]) == {"em": em, "f1": pytest.approx(f1)}


def test_coqa_leaves_each_person_out_in_turn() -> None:
    # Against all of them "no" would be right; left out one after the other: [no, cat], [no, cat], [no, no].
    row = {"answers": ["no", "No.", "a cat"]}
    assert scores.coqa(row, ["No"]) == {"em": 1, "f1": 1}
    # "cat" is among the others' answers twice of three times.
    assert scores.coqa(row, ["cat"]) == {"em": pytest.approx(2 / 3), "f1": pytest.approx(2 / 3)}
    assert scores.coqa({"answers": ["yes"]}, ["yes"]) == {"em": 1, "f1": 1}


@pytest.mark.parametrize(
    ("text", "begins"),
    [(" comedy and more", 1), ("the comedy.", 1), ("comedyish", 0), ("a good comedy", 0), ("", 0)],
)
def test_a_fact_may_be_written_on(text: str, begins: float) -> None:
    assert scores.facts({"answers": ["parody", "Comedy"]}, [text])["begins"] == begins


def test_an_answer_of_which_nothing_is_left_begins_nothing_else() -> None:
    assert scores.facts({"answers": ["A"]}, [" the"])["begins"] == 1
    assert scores.facts({"answers": ["A"]}, [" a cat"])["begins"] == 0


@pytest.mark.parametrize(
    ("text", "acc"),
    [
        (" dog", 1),
        (" dog. Then", 1),
        (" dog' he said", 1),
        ("dog", 1),
        (" dogs", 0),  # the word goes on
        (" dog's", 0),
        (" dog-like", 0),
        (" Dog", 0),
        (" a dog", 0),
        ("", 0),
    ],
)
def test_lambada_s_word_is_written_and_ends(text: str, acc: float) -> None:
    assert scores.last_word({"word": "dog"}, [text]) == {"acc": acc}


def test_rouge_by_hand() -> None:
    # Of "the cat sat", "the cat ran off" has 2 of 4 words, 1 of 3 pairs, and 2 words in a row of order.
    found = scores.rouge("the cat ran off", ["a dog", "the cat sat"])
    assert found == {
        "rouge1": pytest.approx(2 * 2 / (4 + 3)),
        "rouge2": pytest.approx(2 * 1 / (3 + 2)),
        "rougeL": pytest.approx(2 * 2 / (4 + 3)),
    }


def test_bleu_and_chrf_take_as_many_references_as_a_text_has() -> None:
    same = [
        ("the cat sat on the mat", ["a dog ran", "the cat sat on the mat"]),
        ("it is a good day", ["it is a good day"]),
    ]
    assert scores.bleu(same) == pytest.approx(100)
    assert scores.chrf(same) == pytest.approx(100)
    # 4 of 5 words, 3 of 4 pairs, 2 of 3 triples, 1 of 2 quadruples; as long as the reference: (4/5 3/4 2/3 1/2)^(1/4)
    assert scores.bleu([("one two three four six", ["one two three four five"])]) == pytest.approx(100 * 0.2**0.25)
    assert scores.chrf([("Это Б.", ["Это Б."])]) == pytest.approx(100)  # rouge-score would see no letter in it
