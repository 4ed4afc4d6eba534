"""Imported once in the clean process that ranks and commands are forked from: what each of them would import."""

import gc

import deepspeed.launcher.launch
import deepspeed.launcher.runner
import deepspeed.runtime.bf16_optimizer
import deepspeed.runtime.pipe.engine
import deepspeed.runtime.zero.muon.muon_optimizer  # takes four seconds, most of a small test
import deepspeed.runtime.zero.stage3
import transformers.models.gpt2.modeling_gpt2

from commands import pretrain
from inference import evaluate, export, generate
from model import pipeline
from model.checkpoint import write as checkpoint
from model.engine import engine
from run import report
from training import train

__all__ = ["checkpoint", "deepspeed", "engine", "evaluate", "export", "generate", "pipeline", "pretrain", "report"]
__all__ += ["train", "transformers"]

engine.quiet_deepspeed()
# DeepSpeed collects garbage up to six times while it builds an engine: a second and a half among so many objects that
# live on anyway, and each collection would copy the pages that all forks share.
gc.collect()
gc.freeze()
