"""Writing with a folder of Hugging Face's form, an export or any causal model, through transformers' `generate`."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AutoModelForCausalLM,
    GPT2LMHeadModel,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    StoppingCriteria,
    StoppingCriteriaList,
    set_seed,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_MASKED_LM_MAPPING_NAMES
from transformers.utils import logging

from data.tokens import tokenisers
from inference.decode.decoder import Scored
from inference.decode.rows import Request, Row, Stopped
from inference.sampling import NOT_FINITE, Sampling
from inference.writers import Text, biased
from model.parallel import Axis
from support.errors import UserError
from support.json_object import JsonObject

SCORED = 2**26  # scores of ids that are held at once where texts are scored: 256 MB in fp32
UNBOUNDED = 2**30  # the context of a model that sets none


class FolderWriter:
    """A causal model of transformers. One text at a time, as its random numbers are one stream."""

    slides = False

    def __init__(
        self,
        model: PreTrainedModel,
        tokeniser: PreTrainedTokenizerFast,
        shares: Axis = Axis(),  # noqa: B008
    ) -> None:
        self.model, self.tokeniser, self.shares = model, tokeniser, shares
        self.framed = not isinstance(model, GPT2LMHeadModel)  # an export reads what its run reads
        self.context = int(getattr(model.config.get_text_config(), "max_position_embeddings", None) or UNBOUNDED)

    def write(self, requests: list[Request], sampling: Sampling, stopped: Stopped) -> Iterator[Row]:
        """See `Writer`."""
        settings = self._settings(sampling)
        for request in requests:
            row = Row(request)
            set_seed(request.seed)
            inputs = torch.tensor([request.prompt], device=self.model.device)
            output = self.model.generate(  # type: ignore[operator]
                inputs,
                attention_mask=torch.ones_like(inputs),
                max_new_tokens=request.most,
                stopping_criteria=StoppingCriteriaList([_Asks(row, stopped)] if sampling.beams == 1 else []),
                **settings,
            )
            row.tokens = output[0].tolist()
            yield row

    @torch.inference_mode()
    def log_odds(self, texts: list[Text]) -> list[Scored]:
        """See `Writer`. Texts of about the same length are read together, filled up behind."""
        order = sorted(range(len(texts)), key=lambda at: -sum(map(len, texts[at])))
        found, room = [Scored(0.0, True)] * len(texts), SCORED // self.model.config.get_text_config().vocab_size
        while order:
            count = max(1, room // sum(map(len, texts[order[0]])))
            some, order = order[:count], order[count:]
            for at, scored in zip(some, self._scored([texts[at] for at in some]), strict=True):
                found[at] = scored
        return found

    def _scored(self, texts: list[Text]) -> Iterator[Scored]:
        rows = [torch.tensor([*before, *after][:-1]) for before, after in texts]
        inputs = pad_sequence(rows, batch_first=True).to(self.model.device)
        mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True).to(self.model.device)
        logits_BSV = self.model(inputs, attention_mask=mask).logits
        for logits_SV, (before, after) in zip(logits_BSV, texts, strict=True):
            here = slice(len(before) - 1, len(before) + len(after) - 1)
            odds_SV = logits_SV[here, : self._entries].float().log_softmax(-1)
            label_S = torch.tensor(after, device=self.model.device)
            total = float(odds_SV.gather(1, label_S[:, None]).double().sum())
            yield Scored(total, bool((odds_SV.argmax(-1) == label_S).all()))

    @property
    def _entries(self) -> int:
        return tokenisers.entries(self.tokeniser)

    def _settings(self, sampling: Sampling) -> JsonObject:
        """The arguments of transformers' `generate`."""
        values: JsonObject = {
            "do_sample": not sampling.greedy and sampling.beams == 1,
            "num_beams": sampling.beams,
            "pad_token_id": self.tokeniser.eos_token_id,
            "suppress_tokens": meaningless(self.model, self.tokeniser) or None,
            "repetition_penalty": sampling.repetition_penalty,
            "no_repeat_ngram_size": sampling.no_repeat_ngram,
            "sequence_bias": biased(self.tokeniser, sampling) or None,
            "logits_processor": LogitsProcessorList([_Finite()]),
        }
        if values["do_sample"]:
            values |= {"temperature": sampling.temperature, "top_k": sampling.top_k, "top_p": sampling.top_p}
            values |= {"min_p": sampling.min_p or None}
        return values


class _Finite(LogitsProcessor):
    """Refuses scores that are no numbers; what is forbidden has minus infinity."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # type: ignore[override]
        if not bool((scores.amax(-1) < torch.inf).all()):
            raise UserError(NOT_FINITE)
        return scores


class _Asks(StoppingCriteria):
    """Asks after each token whether a text is finished."""

    def __init__(self, row: Row, stopped: Stopped) -> None:
        self.row, self.stopped = row, stopped

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:  # type: ignore[override]
        self.row.tokens = input_ids[0].tolist()
        return torch.tensor([self.stopped(self.row)], device=input_ids.device)


def load_folder(
    folder: Path,
    dtype: torch.dtype = torch.float32,
    shares: Axis = Axis(),  # noqa: B008
    device: str = "cuda" if torch.cuda.is_available() else "cpu",
) -> FolderWriter:
    """The model of a folder and its tokeniser, on each of the ranks that share the work. On the device `meta` all is
    checked and no weights are read; that needs accelerate.

    Errors: `UserError` where the folder holds no such.
    """
    refuse_other_kinds(folder)
    logging.set_verbosity_error()  # what is wrong with the weights is said here, in a line
    try:
        model, told = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            device_map="meta" if device == "meta" else None,
        )
        tokeniser = tokenisers.load(str(folder))
    except UserError:
        raise
    except Exception as error:  # of files that are anybody's: transformers raises whatever meets them first
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{folder} cannot be read as a model: {reason}; give a run, or export it again") from None
    # transformers draws anew what it does not find, and says so in a table.
    if missing := sorted(told["missing_keys"]):
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UserError(f"{folder} lacks the tensor {missing[0]}{more}; copy it again, or export the run again")
    if other := sorted(name for name, *_ in told["mismatched_keys"]):
        raise UserError(
            f"{folder} cannot be read as a model: its tensor {other[0]} has another shape than its config.json says; "
            "copy it again, or export the run again"
        )
    entries, rows = tokenisers.entries(tokeniser), model.get_input_embeddings().weight.size(0)
    if not rows <= 2 * entries <= 2 * rows:  # some models have rows that no id needs, but not as many again
        raise UserError(
            f"{folder} has a tokeniser of {entries} entries for a model of {rows}: they do not belong together; "
            "export the run again"
        )
    return FolderWriter(model.to(device).eval(), tokeniser, shares)


def refuse_other_kinds(folder: Path) -> None:
    """Errors: `UserError` where a folder holds no causal model, or needs code that comes with it."""
    config, words = (_json_of(folder / name) for name in ("config.json", "tokenizer_config.json"))
    kind, classes = config.get("model_type"), config.get("architectures") or []
    if ("auto_map" in config and kind not in CONFIG_MAPPING_NAMES) or (
        "AutoTokenizer" in words.get("auto_map", {}) and not (folder / "tokenizer.json").exists()
    ):
        raise UserError(f"{folder} needs code of its own, which is not run here; take a model that transformers knows")
    causal = set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()) & set(classes)
    reads_both_ways = kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not causal
    known = (
        kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or kind not in CONFIG_MAPPING_NAMES
    )  # transformers says the latter
    if config.get("is_encoder_decoder") or reads_both_ways or not known:
        what = ", ".join(classes) or kind
        raise UserError(f"{folder} holds no causal model but {what}; give one that goes on from a text, such as gpt2")


def _json_of(file: Path) -> JsonObject:
    """What a file of JSON says, nothing where it cannot be read: who loads the model says that."""
    try:
        found = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def meaningless(model: PreTrainedModel, tokeniser: PreTrainedTokenizerFast) -> list[int]:
    """Ids that the model could write and the tokeniser could not read: gaps, or the padding of somebody else's model.

    They must not be drawn, nor take a share of the odds.
    """
    return sorted(set(range(model.config.get_text_config().vocab_size)) - set(tokeniser.get_vocab().values()))
