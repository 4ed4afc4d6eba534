"""A folder of small tasks, one of each kind of output."""

import json
from pathlib import Path

ROWS = [
    {"question": "the cat sat on the", "choices": ["mat", "rat", "more and more"], "answer": 0},
    {"question": "the rat", "choices": ["sat on the mat", "and", "cat the cat the"], "answer": 1},
    {"question": "and", "choices": ["more", "the mat the rat sat on the cat"], "answer": 1},
    {
        "question": "more and more the mat, the rat sat on the cat and more the cat sat on",
        "choices": ["it", "x"],
        "answer": 0,
    },
    {"question": "x", "choices": ["the", "the cat", "the cat sat"], "answer": 2},
]
KINDS = {
    "made_choice": """
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
""",
    "made_likelihood": """
output_type: loglikelihood
doc_to_text: "{{question}}"
doc_to_target: " {{choices[answer]}}"
metric_list:
  - {metric: perplexity, aggregation: perplexity, higher_is_better: false}
  - {metric: acc, aggregation: mean, higher_is_better: true}
""",
    "made_rolling": """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{question * 3}} {{choices|join(' ')}} {{question}}"
metric_list:
  - {metric: word_perplexity, aggregation: weighted_perplexity, higher_is_better: false}
  - {metric: bits_per_byte, aggregation: bits_per_byte, higher_is_better: false}
""",
    "made_writing": """
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{choices[answer]}}"
generation_kwargs: {until: ["\\n", "sat"], max_gen_toks: 9}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
""",
}


def folder(place: Path, kinds: dict[str, str] | None = None, rows: list[dict[str, object]] | None = None) -> Path:
    """Write tasks, by default one of each kind, and their rows."""
    place.mkdir(parents=True, exist_ok=True)
    data = place / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in (ROWS if rows is None else rows)))
    for name, text in (kinds or KINDS).items():
        head = f"task: {name}\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {data}}}}}\ntest_split: test\n"
        (place / f"{name}.yaml").write_text(head + text)
    return place
