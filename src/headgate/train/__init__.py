"""Training: recipes' types, data, the loop, the budget controller, distillation, evaluation."""

from headgate.train.evaluate import Evaluation, evaluate
from headgate.train.loop import InterruptedRun, RunResult, train
from headgate.train.recipe import (
    BudgetConfig,
    DataConfig,
    DistillConfig,
    OptimiserConfig,
    Recipe,
    ScheduleConfig,
)

__all__ = [
    "BudgetConfig",
    "DataConfig",
    "DistillConfig",
    "Evaluation",
    "InterruptedRun",
    "OptimiserConfig",
    "Recipe",
    "RunResult",
    "ScheduleConfig",
    "evaluate",
    "train",
]
