"""The training loop: one process or many, dense or gated, interrupted and resumed."""

from __future__ import annotations

import json
import math
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate.utils import set_seed
from torch import Tensor, nn

from headgate.baselines import Method, PruningConfig, make_method
from headgate.checkpoint import save
from headgate.counting import MacLedger
from headgate.errors import CheckpointError, DivergedError, HeadgateError, ModelError
from headgate.files import write_atomic
from headgate.fusion import fuse, set_sync_
from headgate.nn import GatedConv2d, Observation, gated_layers, observe, threshold_loss
from headgate.train.allocator import keep_freed_memory
from headgate.train.budget import Steering, calibrate_, fold_offset_, make_steering, set_offset_
from headgate.train.evaluate import Evaluation, evaluate
from headgate.train.interrupt import interruptible
from headgate.train.log import Meter, RunLog
from headgate.train.losses import task_loss
from headgate.train.networks import build_model, load_teacher
from headgate.train.optimiser import clamp_thresholds_, make_optimiser
from headgate.train.prepare import Loaders, make_loaders
from headgate.train.processes import exists_for_all, join_processes
from headgate.train.recipe import BudgetConfig, Recipe
from headgate.train.schedule import interpolate, learning_rate
from headgate.train.seeding import generator
from headgate.train.state import Progress, load_state, save_state

STATE, MODEL, RECIPE, SUMMARY, COUNTS = (
    "state.safetensors", "model.safetensors", "recipe.json", "summary.json", "counts.json"
)  # fmt: skip
LOG_EVERY = 50  # steps
PRUNING_IMAGES = 256  # that a pruning method may look at before training
BUDGET_TOLERANCE = 0.03  # relative; beyond it the user is told
_ELASTIC = 3  # what a generator is for; train.data and train.streaming have 0 to 2


class InterruptedRun(KeyboardInterrupt):
    """Ctrl-C or SIGTERM, after the state was saved."""


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """A finished run.

    Attributes:
        folder: holds model.safetensors, summary.json, counts.json, metrics.jsonl and tensorboard/.
        evaluation: of the final model on the whole test split, in float32.
        seconds: training time.
    """

    folder: Path
    evaluation: Evaluation
    seconds: float


def train(recipe: Recipe, folder: str | Path, *, resume: bool = True, console: bool = True) -> RunResult:
    """Run a recipe in a folder, from where it stands.

    Args:
        folder: made if missing. Where it holds a finished or interrupted run of the same recipe, that one is resumed.
        resume: False starts anew and refuses a folder that holds a run.
        console: show a progress bar on stderr.
    Raises:
        CheckpointError: the folder holds another recipe's run, or a file cannot be written.
        DivergedError: the loss became NaN or infinite; the last state that was saved is kept.
        InterruptedRun: Ctrl-C; the state was saved and the same call resumes.
        ConfigError: the launcher started several processes that cannot find each other, or from the recipe's parts.
        DataError, ModelError: from the recipe's parts.
    """
    try:
        return _Run(recipe, Path(folder), resume=resume, console=console).run()
    except HeadgateError:
        raise
    except OSError as error:
        raise CheckpointError(f"cannot use {folder} for a run: {error}; choose another folder") from error


class _Run:
    def __init__(self, recipe: Recipe, folder: Path, *, resume: bool, console: bool) -> None:
        keep_freed_memory()
        self.recipe, self.folder, self.console = recipe, folder, console
        self.state_path = folder / STATE
        if not resume and self.state_path.exists():
            raise CheckpointError(f"{folder} holds a run already; resume it, or choose another folder")
        self.accelerator = join_processes()
        set_seed(recipe.seed)
        self.device = self.accelerator.device
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        self.data: Loaders = make_loaders(recipe, rank, world, self.device)
        self.model = build_model(recipe, self.data.example_input).to(self.device)
        self.teacher: nn.Module | None = None
        if recipe.distill is not None:
            example, classes = self.data.example_input.to(self.device), recipe.architecture.num_classes
            self.teacher = load_teacher(recipe.distill.teacher, self.data.preprocess, example, classes)
        self.budget: BudgetConfig | None = recipe.budget
        self.ledger: MacLedger | None = None
        self.steering: Steering | None = None
        if self.budget is not None:
            self._prepare_gates(self.budget)
        self.method = Method(self.model) if recipe.pruning is None else self._begin_pruning(recipe.pruning)
        self.model = self.method.model
        self.optimiser = make_optimiser(self.model, recipe.optimiser)
        self.trained = self._fused()
        if recipe.sync_norm:
            set_sync_(self.trained, True)
        self.wrapped = self.accelerator.prepare_model(self.trained)
        self.progress = Progress()
        if exists_for_all(self.state_path, self.accelerator):
            self.progress = load_state(self.state_path, self.model, self.optimiser, recipe.to_dict())
            if self.steering is not None:
                self.steering.restore(self.progress.steering)
            self.method.resume(self.progress.epoch * len(self.data.train) + self.progress.step)

    def _prepare_gates(self, budget: BudgetConfig) -> None:
        if budget.forced is not None:
            for layer in gated_layers(self.model).values():
                layer.gate.forced = budget.forced
                unused = layer.final_norm if budget.forced == "closed" and layer.separate else layer.partial_norm
                for module in (layer.gate, unused):
                    if module is not None:
                        module.requires_grad_(False)
        images = next(self.data.calibration())[0]  # real ones: an "fc" gate's costs depend on what is zero
        height, width = self.data.example_input.shape[2:]  # and of the size that training sees, not evaluation
        self.ledger = MacLedger(self.model, images[:, :, :height, :width])
        self.steering = make_steering(budget, self.ledger.fixed / self.ledger.dense)

    def _begin_pruning(self, config: PruningConfig) -> Method:
        images, labels, _ = next(self.data.calibration())
        height, width = self.data.example_input.shape[2:]
        batch = (images[:PRUNING_IMAGES, :, :height, :width], labels[:PRUNING_IMAGES])
        steps = self.recipe.epochs * len(self.data.train)
        return make_method(config, self.model.eval(), [batch], steps)

    def _fused(self) -> nn.Module:
        self.model.train()
        try:
            return fuse(self.model, self.data.example_input.to(self.device))
        except ModelError as error:
            self.accelerator.print(f"training without fusion, at some cost in speed: {error}")
            return self.model

    # ------------------------------------------------------------------ run

    def run(self) -> RunResult:
        recipe, main = self.recipe, self.accelerator.is_main_process
        steps = len(self.data.train)
        if main:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomic(self.folder / RECIPE, json.dumps(recipe.to_dict(), indent=2) + "\n")
        log = RunLog(
            self.folder if main else None,
            total_steps=recipe.epochs * steps,
            first_step=self.progress.epoch * steps + self.progress.step,
            console=self.console,
        )
        with log, interruptible() as interrupted:
            while self.progress.epoch < recipe.epochs:
                self._epoch(log, interrupted)
                epoch = self.progress.epoch
                if epoch % recipe.eval_every == 0 and epoch < recipe.epochs:
                    self._log_evaluation(log, self._evaluate(quick=True))
                self._save_state()
            self._finish_gates(interrupted)
            self.model = self.method.finish()
            evaluation = self._evaluate(quick=False)
            if not math.isfinite(evaluation.loss):
                raise self._diverged(f"the loss on the test split is {evaluation.loss} before")
            self._log_evaluation(log, evaluation)
        if main:
            self._write_results(evaluation)
        return RunResult(folder=self.folder, evaluation=evaluation, seconds=self.progress.seconds)

    def _epoch(self, log: RunLog, interrupted: list[bool]) -> None:
        recipe, progress, steps = self.recipe, self.progress, len(self.data.train)
        self.model.train()
        self.trained.train()
        meter = Meter()
        before = time.perf_counter()
        for step, (images, labels, _) in self.data.train.epoch(progress.epoch, progress.step):
            position = progress.epoch + step / steps
            rate = learning_rate(recipe.schedule, recipe.optimiser.lr, position, recipe.epochs)
            for group in self.optimiser.param_groups:
                group["lr"] = rate
            loss, logits, share, grad_norm = self._step(images, labels, position, progress.epoch * steps + step)
            if not math.isfinite(loss):
                raise self._diverged(f"the loss is {loss} at")
            now = time.perf_counter()
            progress.seconds += now - before
            correct = self.accelerator.reduce((logits.argmax(1) == labels).float().mean(), "mean")
            meter.add(loss, float(correct), share, self.recipe.batch_size, now - before)
            before = now
            progress.step = step + 1
            done = progress.epoch * steps + progress.step
            log.advance(done)
            if progress.step % LOG_EVERY == 0 or progress.step == steps:
                offset = self.steering.offset if self.steering is not None else None
                figures = {"epoch": position, "lr": rate, "grad_norm": grad_norm, "offset": offset}
                log.write("train", done, figures | meter.figures(self._base_share))
                meter = Meter()
            if self._stopped(interrupted):
                self._save_state()
                raise InterruptedRun(f"interrupted; the state is saved in {self.state_path}")
        progress.epoch, progress.step = progress.epoch + 1, 0
        self._require_finite()

    def _require_finite(self) -> None:
        """The loss that a step looks at is from before it: what it made of the weights must be looked at too."""
        tensors = [value for value in self.model.state_dict().values() if value.is_floating_point()]
        if self._any(not all(bool(value.isfinite().all()) for value in tensors)):
            raise self._diverged("weights are not finite before")

    def _diverged(self, what: str) -> DivergedError:
        kept = f"the last good state is kept in {self.state_path}" if self.state_path.exists() else "no state is kept"
        return DivergedError(
            f"{what} step {self.progress.step} of epoch {self.progress.epoch}; {kept}; lower the learning rate or warm "
            "up longer"
        )

    def _any(self, here: bool) -> bool:
        """Whether something is so for any process; all of them get the same answer."""
        if self.accelerator.num_processes == 1:
            return here
        flag = torch.tensor(float(here), device=self.device)
        return bool(self.accelerator.reduce(flag, "sum") > 0)

    def _stopped(self, interrupted: list[bool]) -> bool:
        """Whether any process was told to stop."""
        return self._any(interrupted[0])

    def _step(
        self, images: Tensor, labels: Tensor, position: float, global_step: int
    ) -> tuple[float, Tensor, float | None, float | None]:
        """One optimiser step. Returns loss, logits, executed share of the gated layers' MACs, gradient norm."""
        recipe = self.recipe
        nudge = self._set_gates(position, global_step)
        self.optimiser.zero_grad(set_to_none=True)
        open_counts: dict[str, Tensor] = {}

        def keep(name: str, _layer: GatedConv2d, observation: Observation) -> None:
            before = open_counts.get(name)  # a layer may run several times
            open_counts[name] = observation.open_counts if before is None else before + observation.open_counts

        observing = nullcontext() if self.steering is None else observe(self.model, keep)
        self.method.before_step(global_step)
        with observing, self.method.observing(), self._autocast():
            logits = self.wrapped(images)
        teacher_logits = None
        if self.teacher is not None:
            with torch.no_grad(), self._autocast():
                teacher_logits = self.teacher(images).float()
        loss = task_loss(
            logits.float(),
            labels,
            label_smoothing=recipe.label_smoothing,
            teacher_logits=teacher_logits,
            distill=recipe.distill,
        )
        if (added := self.method.penalty()) is not None:
            loss = loss + added
        share: float | None = None
        if self.steering is not None and self.ledger is not None and self.budget is not None:
            executed = self.ledger.executed(open_counts) / self.ledger.dense
            penalty = self.steering.penalty(executed)
            if penalty is not None:
                loss = loss + penalty
            else:
                weight = interpolate(self.budget.weight, self.budget.weight_final, position / recipe.epochs)
                loss = loss + threshold_loss(self.model, self.steering.pulled_to, weight)
            share = float(self.accelerator.reduce(executed.detach(), "mean"))
            if nudge == 0:
                progress = position / self.budget.close_epochs if self.budget.close_epochs else 1.0
                self.steering.update(share, min(progress, 1.0))
        self.accelerator.backward(loss)
        grad_norm: float | None = None
        if recipe.optimiser.max_grad_norm is not None:
            grad_norm = float(self.accelerator.clip_grad_norm_(self.model.parameters(), recipe.optimiser.max_grad_norm))
        self.optimiser.step()
        self.method.after_step()
        clamp_thresholds_(self.model, 0.0 if self.steering is None else self.steering.pulled_to)
        value = float(self.accelerator.reduce(loss.detach(), "mean"))
        return value, logits.detach(), share, grad_norm

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.precision == "bf16")

    def _set_gates(self, position: float, global_step: int) -> float:
        """Set offset and slope for this step; returns the elastic part of the offset."""
        if self.steering is None or self.budget is None or self.recipe.gate is None:
            return 0.0
        nudge = 0.0
        if self.budget.elastic and global_step % 2:
            draw = torch.rand((), generator=generator(self.recipe.seed, _ELASTIC, global_step))
            nudge = self.budget.elastic * (2 * float(draw) - 1)
        set_offset_(self.model, self.steering.offset + nudge)
        slope = interpolate(self.recipe.gate.slope, self.budget.slope_final, position / self.recipe.epochs)
        for layer in gated_layers(self.model).values():
            layer.gate.slope = slope
        return nudge

    @property
    def _base_share(self) -> float | None:
        return None if self.ledger is None else self.ledger.fixed / self.ledger.dense

    # ----------------------------------------------------------- evaluation

    def _evaluate(self, *, quick: bool) -> Evaluation:
        if self.steering is not None:
            set_offset_(self.model, self.steering.offset)
        autocast = torch.bfloat16 if quick and self.recipe.precision == "bf16" else None
        self._agree_on_buffers()
        return evaluate(self.model, self.data.test(limited=quick), autocast=autocast)

    def _agree_on_buffers(self) -> None:
        """Running statistics drift apart between processes; what is saved is the first one's."""
        if self.accelerator.num_processes > 1:
            for buffer in self.model.buffers():
                torch.distributed.broadcast(buffer, 0)

    def _finish_gates(self, interrupted: list[bool]) -> None:
        """End exactly on the budget: training batches and evaluation differ a little."""
        if self.steering is None or self.budget is None:
            return
        set_offset_(self.model, self.steering.offset)
        wanted = self.budget.mac_reduction
        if wanted is not None:
            self._agree_on_buffers()

            def measure() -> float:
                if self._stopped(interrupted):
                    raise InterruptedRun(f"interrupted after training; the same command goes on from {self.state_path}")
                return evaluate(self.model, self.data.calibration()).counts.mac_reduction

            reached = calibrate_(self.model, wanted, measure)
            if abs(reached / wanted - 1) > BUDGET_TOLERANCE:
                self.accelerator.print(
                    f"warning: the gates reached a MAC reduction of {reached:.2f}, not {wanted:.2f}; train longer, "
                    "or ask for less"
                )
        fold_offset_(self.model)
        self.steering.offset = 0.0

    def _log_evaluation(self, log: RunLog, evaluation: Evaluation) -> None:
        figures = {"accuracy": evaluation.accuracy, "top5": evaluation.top5, "loss": evaluation.loss}
        if self.recipe.gate is not None:
            figures |= {"mac_reduction": evaluation.counts.mac_reduction, "density": evaluation.counts.density}
        log.write("eval", self.progress.epoch * len(self.data.train), {"epoch": self.progress.epoch, **figures})

    # ---------------------------------------------------------------- files

    def _save_state(self) -> None:
        self._require_finite()
        if self.steering is not None:
            self.progress.steering = self.steering.state()
        if self.accelerator.is_main_process:
            save_state(self.state_path, self.model, self.optimiser, self.progress, self.recipe.to_dict())
        self.accelerator.wait_for_everyone()

    def _write_results(self, evaluation: Evaluation) -> None:
        summary = {
            "name": self.recipe.name,
            "accuracy": evaluation.accuracy,
            "top5": evaluation.top5,
            "loss": evaluation.loss,
            "epochs": self.recipe.epochs,
            "seed": self.recipe.seed,
            "seconds": round(self.progress.seconds, 1),
            "mac_reduction": evaluation.counts.mac_reduction,
            "network_mac_reduction": evaluation.counts.network_mac_reduction,
            "density": evaluation.counts.density,
            "input_shape": list(self.data.example_input.shape[1:]),
            "torch": torch.__version__,
        }
        self.model.preprocess = self.data.preprocess  # type: ignore[assignment]  # mypy: only tensors and modules
        save(self.model, self.folder / MODEL, metadata=summary)
        evaluation.counts.save(self.folder / COUNTS)
        write_atomic(self.folder / SUMMARY, json.dumps(summary, indent=2) + "\n")
