import itertools
import json

from data.cleaning.tally import SAMPLES, Count, Tally
from data.corpus.document import utf8_bytes


def tally(names: range) -> Tally:
    made = Tally(documents=len(names), bytes=10 * len(names))
    for n in names:
        made.drop("exact", f"doc{n}", "text", "duplicate", lambda: "like")
        made.change("unicode", f"doc{n}", 2, "broken")
    return made


def test_the_sample_does_not_depend_on_how_documents_were_dealt_out() -> None:
    together = tally(range(1000))
    for cuts in ((0, 10, 1000), (0, 500, 501, 1000)):
        parts = [tally(range(a, b)) for a, b in itertools.pairwise(cuts)]
        total = Tally()
        for part in reversed(parts):
            total.add(Tally.from_dict(json.loads(json.dumps(part.to_dict()))))
        assert total.to_dict() == together.to_dict()
    count = together.stages["exact"]
    assert (count.dropped, count.bytes_removed, count.rules["duplicate"]) == (1000, 4000, 1000)
    assert len(count.samples) == SAMPLES
    numbers = sorted(int(record["name"].removeprefix("doc")) for _, record in count.samples)
    assert numbers[0] < 100 and numbers[-1] > 900  # from all over


def test_a_detail_is_worked_out_for_samples_only() -> None:
    worked_out = []
    count = Count()
    for n in range(2000):
        count.note(f"doc{n}", "rule", lambda: worked_out.append(1) or "", "text")  # type: ignore[func-returns-value]
    assert SAMPLES <= len(worked_out) < 600


def test_sizes_are_bytes() -> None:
    assert (utf8_bytes("abc"), utf8_bytes("é漢")) == (3, 5)
