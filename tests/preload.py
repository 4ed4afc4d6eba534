"""Imported once in the clean process that all ranks are forked from."""

from model.engine import quiet_deepspeed

quiet_deepspeed()
