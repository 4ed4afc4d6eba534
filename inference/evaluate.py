"""How good a model is on any text. Imports nothing heavy."""

from pathlib import Path
from typing import TYPE_CHECKING

from inference.measuring.texts import Text, Words, are_rows, texts_of, words_of
from inference.named import at_step, is_folder
from run.checkpoints import Chosen, choose
from run.directory import read_recipe
from run.report import bits_per_byte, perplexity
from support.errors import UserError
from support.json_object import JsonObject

if TYPE_CHECKING:
    from collections.abc import Sequence

    from inference.measuring.answers import Answers
    from inference.measuring.losses import Loss, Measured

ANSWERS, PAIRS = "answers", "pairs"  # what is asked of a model that was tuned, or learned preferences


def evaluate(path: Path, data: str, which: str | None = None, pseudo_tokens: int | None = None) -> JsonObject:
    """Loss of a model on `data`: "validation" (the run's own), a prepared split or shard by its path, or any corpus.

    `path` is a run, one of its checkpoints, or a folder of Hugging Face's form; `which` is a checkpoint, see
    `run/checkpoints.py`. A token of its own stands in front, an end of a document as in training, and long texts are
    cut into consecutive windows of the model's length. The tokens that close the documents are predicted like all
    others: their loss counts, and they have no bytes. Of a masked model there is the pseudo-perplexity too, over about
    `pseudo_tokens` tokens. Of a run that was tuned, rows and its own data are examples, whose answers alone count (the
    objective "answers"). Of one that learned preferences they are pairs: there is no loss, but the share of those whose
    chosen answer is likelier than the rejected one. Errors: `UserError` where the data cannot be read or are empty,
    there is no such checkpoint, or the loss is not finite.
    """
    path, which = at_step(path, which)
    words, objective = _words(path), _objective(path)
    if pseudo_tokens is not None and (objective != "masked" or pseudo_tokens < 1):
        how = "needs a model of the masked objective; leave it out" if objective != "masked" else "must be at least 1"
        raise UserError(f"--pseudo-tokens {pseudo_tokens} {how}")
    if not is_folder(path) and read_recipe(path).data.tunes and are_rows(data):
        return _answers(words, data, which)
    texts = texts_of(words, data)
    model, checkpoint = _loaded(words, which)
    from inference.measuring.losses import mean_loss

    found = [mean_loss(model, text) for text in texts]
    values = {**_described(path, data, checkpoint, model), **_together(texts, found)}
    if objective == "masked":
        values |= {"bits_per_byte": None, **_pseudo(model, texts, pseudo_tokens)}
    return values


def _answers(words: Words, data: str, which: str | None) -> JsonObject:
    """The loss of the answers of examples, or what is found of pairs."""
    from inference.measuring.answers import answer_loss, answers_of, likelier

    answers = answers_of(words, data)
    model, checkpoint = _loaded(words, which)
    described = _described(words.path, data, checkpoint, model)
    left_out = sum(each.left_out for each in answers)
    if not read_recipe(words.path).dpo.beta:
        found = [answer_loss(model, each) for each in answers]
        return {**described, "objective": ANSWERS, **_together(answers, found), "left_out": left_out}
    total = sum(each.share for each in answers)
    parts: list[JsonObject] = []
    for each in answers:
        share, pairs = likelier(model, each)
        parts.append({"name": each.name, "share": each.share / total, "likelier": share, "pairs": pairs})
    mean = sum(part["share"] * part["likelier"] for part in parts)
    pairs = sum(part["pairs"] for part in parts)
    own = {"pairs": pairs, "likelier": mean, "parts": parts, "left_out": left_out}
    return {**described, "objective": PAIRS, **own}


def word_perplexity(path: Path, data: str, which: str | None = None, stride: int | None = None) -> JsonObject:
    """Perplexity a word of a causal model on a file of WikiText, by Megatron's protocol; see `measuring/wikitext.py`.

    `stride` is how many tokens a window scores anew. Errors: `UserError` as `evaluate`.
    """
    from inference.measuring.wikitext import PROTOCOL, word_loss

    path, which = at_step(path, which)
    words, objective = _words(path), _objective(path)
    if objective != "causal":
        raise UserError(f"--protocol {PROTOCOL} needs a causal model, and {path} is of the {objective} objective")
    model, checkpoint = _loaded(words, which)
    found = word_loss(words, model, Path(data), stride)
    return {
        **_described(path, data, checkpoint, model),
        "protocol": PROTOCOL,
        "stride": found.stride,
        "tokens": found.tokens,
        "words": found.words,
        "bytes": found.size,
        "loss": found.mean,
        "perplexity": perplexity(found.mean),
        "bits_per_byte": bits_per_byte(found.mean, found.size / found.tokens),
        "word_perplexity": perplexity(found.per_word),
    }


def _words(path: Path) -> Words:
    if not is_folder(path):
        read_recipe(path)  # it says where a path is no run
    return words_of(path)


def _objective(path: Path) -> str:
    return "causal" if is_folder(path) else read_recipe(path).model.objective


def _loaded(words: Words, which: str | None) -> "tuple[Measured, Chosen | None]":
    from inference.measuring.models import measured_folder, measured_run

    if is_folder(words.path):
        return measured_folder(words), None
    checkpoint = choose(words.path, which)
    checkpoint.tell()
    return measured_run(words, checkpoint), checkpoint


def _described(path: Path, data: str, checkpoint: Chosen | None, model: "Measured") -> JsonObject:
    told = checkpoint.told if checkpoint else {"checkpoint": None, "passed_over": []}
    return {"run": str(path), **told, "data": data, "objective": model.objective.name, "context": model.context}


def _together(texts: "Sequence[Text | Answers]", found: "list[Loss]") -> JsonObject:
    """The loss of all texts, each with its share."""
    total = sum(text.share for text in texts)
    loss = sum(text.share * each.mean for text, each in zip(texts, found, strict=True)) / total
    bytes_per_token = sum(text.share * text.size / text.num_tokens for text in texts) / total
    return {
        "tokens": sum(each.tokens for each in found),
        "bytes": sum(text.size for text in texts),
        "loss": loss,
        "perplexity": perplexity(loss),
        "bits_per_byte": bits_per_byte(loss, bytes_per_token),
        "parts": [
            {"name": text.name, "share": text.share / total, "loss": each.mean, "tokens": each.tokens}
            for text, each in zip(texts, found, strict=True)
        ],
    }


def _pseudo(model: "Measured", texts: list[Text], asked: int | None) -> JsonObject:
    """The pseudo-perplexity of all texts; each gives its share of the tokens, at least one."""
    from inference.measuring.pseudo import DEFAULT_TOKENS, pseudo_loss

    shares = [text.share / sum(each.share for each in texts) for text in texts]
    most = DEFAULT_TOKENS if asked is None else asked
    found = [pseudo_loss(model, text, max(1, round(share * most))) for text, share in zip(texts, shares, strict=True)]
    loss = sum(share * each.mean for share, each in zip(shares, found, strict=True))
    return {
        "pseudo_loss": loss,
        "pseudo_error": sum((share * each.error) ** 2 for share, each in zip(shares, found, strict=True)) ** 0.5,
        "pseudo_perplexity": perplexity(loss),
        "pseudo_tokens": sum(each.tokens for each in found),
    }


def show(values: JsonObject) -> None:
    """Print what `evaluate` or `word_perplexity` found."""
    if values["objective"] == PAIRS:
        for each in ({"name": values["data"], **values}, *(values["parts"] if len(values["parts"]) > 1 else ())):
            print(f"{each['name']}: the chosen answer is likelier in {each['likelier']:.1%} of {each['pairs']:,} pairs")
        _show_left_out(values)
        return
    bits = "" if values["bits_per_byte"] is None else f", {values['bits_per_byte']:.4f} bits a byte"
    asked = {"causal": "", "masked": " masked", "prefix": " continuing", ANSWERS: " answer"}[values["objective"]]
    print(
        f"{values['data']}: loss {values['loss']:.4f}, perplexity {values['perplexity']:.2f}{bits} over "
        f"{values['tokens']:,}{asked} tokens"
    )
    _show_left_out(values)
    for part in values["parts"] if len(values.get("parts", ())) > 1 else ():
        print(f"  {part['share']:7.3%} {part['name']}: loss {part['loss']:.4f} over {part['tokens']:,} tokens")
    if "pseudo_loss" in values:
        print(
            f"pseudo-perplexity {values['pseudo_perplexity']:.2f}: loss {values['pseudo_loss']:.4f} ± "
            f"{values['pseudo_error']:.4f} over {values['pseudo_tokens']:,} tokens, each hidden alone"
        )
    if "word_perplexity" in values:
        print(
            f"perplexity a word {values['word_perplexity']:.2f} over {values['words']:,} words, by the protocol "
            f"{values['protocol']}, each window {values['stride']} tokens on"
        )


def _show_left_out(values: JsonObject) -> None:
    if values.get("left_out"):
        print(
            f"left out {values['left_out']:,} examples that are longer than the context of {values['context']:,} tokens"
        )
