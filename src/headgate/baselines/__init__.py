"""The pruning methods that channel gating is compared with."""
