"""What every rank and command imports. The clean process that they are forked from imports it once."""

import gc

import deepspeed.launcher.launch
import deepspeed.launcher.runner
import deepspeed.runtime.bf16_optimizer
import deepspeed.runtime.pipe.engine
import deepspeed.runtime.zero.muon.muon_optimizer  # takes four seconds, most of a small test
import deepspeed.runtime.zero.stage3
import transformers.models.gpt2.modeling_gpt2

from commands import pretrain
from inference import evaluate, export, foreign, generate
from model import pipeline
from model.checkpoint import read, write
from model.engine import build, device
from run import report
from training import train

__all__ = ["build", "deepspeed", "device", "evaluate", "export", "generate", "pipeline", "pretrain", "read", "report"]
__all__ += ["foreign", "train", "transformers", "write"]

build.quiet_deepspeed()
# DeepSpeed collects garbage up to six times while it builds an engine: a second and a half among so many objects that
# live on anyway, and each collection would copy the pages that all forks share.
gc.collect()
gc.freeze()
