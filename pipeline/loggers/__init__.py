"""Loggers: what a training or an evaluation measured, sent to other programs while it runs."""

from unic_pipe.pipeline.loggers.logger import Logger, Maker, Page, Picture, Run, Tell, Value
from unic_pipe.pipeline.loggers.registry import wanted_loggers
from unic_pipe.pipeline.loggers.sender import Sender, close_all, send

__all__ = [
    "Logger", "Maker", "Page", "Picture", "Run", "Sender", "Tell", "Value", "close_all", "send", "wanted_loggers",
]  # fmt: skip
