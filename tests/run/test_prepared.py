"""Which data of a recipe is missing is known without making it."""

from pathlib import Path

import pytest

from data.tokens import prepare
from recipes.registry import load
from recipes.settings import override
from run.prepared import missing_data, recipe_data
from support.errors import UserError
from tests.data.cleaning.test_clean import prose, write


@pytest.mark.parametrize("clean", ["", "unicode"])
def test_missing_data(clean: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One corpus, then a blend of two with a tokeniser that both share; as they are, and cleaned."""
    monkeypatch.setenv("STAGECRAFT_RUNS", str(tmp_path / "runs"))
    corpora = [write(tmp_path / f"{n}.jsonl", [prose(40 * n + seed) for seed in range(40)]) for n in range(2)]
    more = ["data.tokeniser=bpe:300", "model.vocab_size=300", *([f"data.clean={clean}"] if clean else [])]
    for corpus in (corpora[0], ",".join(map(str, corpora))):
        recipe = override(load("tiny"), [f"data.corpus={corpus}", *more])
        parts = [part.corpus for part in recipe.data.parts]
        assert missing_data(recipe) == (parts[-1:] if clean else parts)  # the first one was cleaned before
        recipe_data(recipe, lambda line: None, prepare.Options(workers=1, engine="tokenizers"))
        assert missing_data(recipe) == []
    Path(corpora[1]).write_text(Path(corpora[0]).read_text())
    assert str(corpora[1]) in missing_data(recipe)
    with pytest.raises(UserError, match="nowhere"):
        missing_data(override(recipe, [f"data.corpus={tmp_path}/nowhere.jsonl"]))
