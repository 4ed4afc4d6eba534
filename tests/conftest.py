"""Settings that all tests share. Ranks share the cores, so each gets one thread."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test depends on the hub
os.environ.setdefault("DS_ACCELERATOR", "cpu")  # the tests need no GPU
os.environ["CUDA_VISIBLE_DEVICES"] = ""  # and take none, for they start more ranks than there may be
os.environ["WANDB_MODE"] = "offline"
