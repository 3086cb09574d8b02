"""Save and load models, gated or dense, and the trained ones that come with headgate."""

from headgate.checkpoint.preprocess import Preprocess
from headgate.checkpoint.shipped import list_pretrained, load_by_name, pretrained
from headgate.checkpoint.store import CheckpointInfo, info, load, save

__all__ = ["CheckpointInfo", "Preprocess", "info", "list_pretrained", "load", "load_by_name", "pretrained", "save"]
