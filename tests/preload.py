"""Imported once in the clean process that all ranks are forked from: what DeepSpeed would import in each of them."""

import deepspeed.runtime.bf16_optimizer
import deepspeed.runtime.pipe.engine
import deepspeed.runtime.zero.muon.muon_optimizer  # takes four seconds, most of a small test
import deepspeed.runtime.zero.stage3

from model import pipeline
from model.checkpoint import write as checkpoint
from model.engine import engine

__all__ = ["checkpoint", "deepspeed", "engine", "pipeline"]

engine.quiet_deepspeed()
