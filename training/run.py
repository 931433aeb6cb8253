"""From a configuration to a finished run: builds the parts, trains, reports what came out."""

import json
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

from accelerate import Accelerator

from backbones.frozen import FrozenBackbone
from checkpoint import locked, write_json
from errors import UserError, printable, stopping_at_once, stopping_gently
from memory import is_out_of_memory
from segmenter import Segmenter
from training.checkpoints import (
    AUTO,
    Resumed,
    RunFiles,
    adopt_best,
    changes,
    check_free,
    check_identity,
    check_writable,
    find_resumed,
    lineage_of,
    precision_before,
    read_resumed,
)
from training.class_weights import class_weights
from training.compilation import check_compiler, compile_training
from training.config import TrainConfig
from training.dry_run import dry_run
from training.logs import is_tested
from training.processes import check_shared, decided, make_accelerator, precision_name
from training.setup import (
    build_segmenter,
    check_backbone,
    end_workers,
    make_loaders,
    settled_weights,
    trainer_settings,
)
from training.summary import out_of_memory_message, outcome, run_record, summary
from training.tasks import TaskData, compare, prepare_data
from training.trainer import Loaders, Trainer
from training.transfer import head_to_begin_with, transfer

PROJECT = "segmentation-heads"
"""What --tracker puts runs under."""

LOST_WORKER = (
    "a process that reads images was ended from outside ({reason}): most often memory or /dev/shm ran out; pass "
    "fewer --num-workers than {num} (0 reads in the main process), and resume with --resume-checkpoint auto"
)


def train(config: TrainConfig) -> None:
    """Trains what `config` says, or prints what that needs where it has dry_run.

    config: config_of("m2f")(image_paths=..., mask_paths=..., ...), see config.py.
    Raises UserError for everything that a person can put right, Interrupted on a signal."""
    with ExitStack() as held:
        held.enter_context(stopping_at_once())
        accelerator = make_accelerator(settled_precision(config), config.tracker)
        if config.dry_run:
            accelerator.print(printable(dry_run(config, accelerator)))
            accelerator.end_training()
            return
        if config.tracker:
            accelerator.init_trackers(PROJECT, config=plain_words(config.arguments()))
        run = prepare(config, accelerator, held)
        if run.is_done:
            run.report_done()
        else:
            run.begin()
            with stopping_gently() as stop, run.closing():
                run.trainer.fit(stop)
                if run.trainer.loaders.test is not None:
                    run.trainer.test()
            run.report_outcome()
        accelerator.end_training()


def settled_precision(config: TrainConfig) -> str:
    """--precision, for make_accelerator: unless it is given, a resumed run keeps its own, on another machine too."""
    if config.precision != "auto":
        return config.precision
    before = precision_before(config.resume_checkpoint, RunFiles.of(config.checkpoint_dir, config.head))
    return before or config.precision


def plain_words(arguments: dict[str, Any]) -> dict[str, Any]:
    """Numbers and words, as every tracker takes them."""
    return {k: v if isinstance(v, int | float | str) else json.dumps(v) for k, v in arguments.items() if v is not None}


@dataclass(frozen=True)
class Shared:
    """What several runs on the same data have in common, so that it is made once."""

    data: TaskData
    backbone: FrozenBackbone
    loaders: Loaders


@dataclass(frozen=True)
class Run:
    """A run that is ready to train: its folder is held, what is resumed is in place. resumed: None where it starts."""

    config: TrainConfig
    files: RunFiles
    trainer: Trainer
    resumed: Resumed | None

    @property
    def shared(self) -> Shared:
        return Shared(self.trainer.data, self.trainer.segmenter.backbone, self.trainer.loaders)

    @property
    def is_done(self) -> bool:
        is_test_due = self.trainer.loaders.test is not None and not is_tested(self.files, self.trainer.progress)
        return self.trainer.is_finished and not is_test_due

    def report_done(self) -> None:
        """Raises UserError where a file was named; with "auto" it is well: a launcher may be started until all is
        done."""
        progress = self.trainer.progress
        done = f"{self.resumed.path} has done {progress.epoch} epochs, {progress.step} steps: nothing is left to do"
        if self.config.resume_checkpoint != AUTO:
            raise UserError(f"--resume-checkpoint {done}; raise --epochs or --max-steps to continue")
        print(done, file=sys.stderr)

    def begin(self) -> None:
        """Says what will be done, clears the folder for it, and writes run.json, in the first process."""
        trainer, about = self.trainer, self.trainer.about
        with trainer.segmenter.backbone.uneven_calls():  # the summary tries the feature cache
            if trainer.accelerator.is_main_process:
                changed = changes(self.resumed, about["arguments"]) if self.resumed else []
                print(printable(summary(self.config, trainer, self.resumed, changed)), flush=True)
        if trainer.accelerator.is_main_process:
            about["line"] = lineage_of(self.config, self.files, self.resumed)
            write_json(self.files.run_json, run_record(about, trainer.data))

    @contextmanager
    def closing(self) -> Iterator[None]:
        """Ends log and loaders, however the training in it ends. Raises UserError for what its errors stand for."""
        trainer = self.trainer
        try:
            with memory_sufficing(self.config, trainer.segmenter):
                yield
        except (RuntimeError, OSError, EOFError) as error:
            reason = lost_worker(error)
            if reason:
                raise UserError(LOST_WORKER.format(reason=reason, num=self.config.num_workers)) from error
            raise
        finally:
            trainer.log.close()
            for loader in (trainer.loaders.train, trainer.loaders.val, trainer.loaders.test):
                end_workers(loader)

    def report_outcome(self) -> None:
        if self.trainer.accelerator.is_main_process:
            weights = self.trainer.segmenter.backbone.weights
            print(outcome(self.files, self.trainer.progress, weights), flush=True)


def prepare(config: TrainConfig, accelerator: Accelerator, held: ExitStack, shared: Shared | None = None) -> Run:
    """held: keeps the run's folder for this process. shared: of another run of the same data, seed and backbone."""
    files = RunFiles.of(config.checkpoint_dir, config.head)
    resumed = None

    def prepare_folder() -> str:
        """Returns the path of the checkpoint to resume, "" where a run begins."""
        nonlocal resumed
        check_writable(files)
        held.enter_context(locked(files.lock))
        check_free(files, config)
        files.remove_leftovers()
        resumed = find_resumed(config.resume_checkpoint, files)
        return str(resumed.path) if resumed else ""

    path = decided(accelerator, f"preparing {files.folder}", prepare_folder)
    check_shared(accelerator, files.folder)
    if path and not accelerator.is_main_process:
        resumed = read_resumed(path)
    if shared and resumed:
        compare(resumed, shared.data.record)
    if config.compile:
        check_compiler(accelerator.device)
    data = shared.data if shared else prepare_data(config, accelerator, resumed)
    with memory_sufficing(config, None):
        released, config = head_to_begin_with(config, resumed)
        config = replace(config, weights=settled_weights(config, resumed))
        backbone = shared.backbone if shared else None
        before = resumed.state["spec"]["options"].get("class_weights") if resumed else None
        weights = class_weights(config.class_weights, data.class_names, data.class_pixels, before)
        segmenter = build_segmenter(config, len(data.class_names), accelerator, resumed, backbone, weights)
    with memory_sufficing(config, segmenter):
        check_backbone(segmenter.backbone, config, data)
        init_head = resumed.state.get("init_head") if resumed else None
        if released:
            report = transfer(released, segmenter, data.class_names, config.keep_matching_classes)
            accelerator.print(report.text())
            init_head = report.record()
        if config.compile:
            compile_training(segmenter, config.batch_size)
        about = run_identity(config, segmenter, data, init_head, precision_name(accelerator))
        loaders = shared.loaders if shared else make_loaders(config, segmenter.backbone, data, accelerator)
        trainer = Trainer(segmenter, data, loaders, trainer_settings(config), files, accelerator, about)
        if resumed:
            check_identity(resumed, about)
            trainer.load_state_dict(resumed.state)
            adopt_best(files, trainer.progress, about, data.metrics)
    return Run(config, files, trainer, resumed)


@contextmanager
def memory_sufficing(config: TrainConfig, segmenter: Segmenter | None) -> Iterator[None]:
    """Raises UserError with what helps, where memory does not suffice. segmenter: None while it is built."""
    try:
        yield
    except Exception as error:
        if is_out_of_memory(error):
            raise UserError(out_of_memory_message(config, segmenter)) from error
        raise


def lost_worker(error: Exception) -> str:
    """Return how a loader worker was lost, or "". torch notices it, or a batch breaks off on its way from the worker.

    "Caught ... in DataLoader worker process" is an error of the program instead, and wants its traceback.
    """
    if re.search(r"DataLoader worker \(pid.*\) (is killed|exited unexpectedly)", str(error)):
        return str(error).splitlines()[0]
    files = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
    is_on_its_way = any("multiprocessing" in file for file in files) and "dataloader.py" in "".join(files)
    is_broken_off = isinstance(error, ConnectionError | FileNotFoundError | EOFError)
    return f"a batch broke off: {error!r}" if is_broken_off and is_on_its_way else ""


def run_identity(
    config: TrainConfig, segmenter: Segmenter, data: TaskData, init_head: dict[str, Any] | None, precision: str
) -> dict[str, Any]:
    """What run.json and all checkpoints of the run say alike; plain values and lists only. precision: see
    processes.precision_name."""
    backbone = segmenter.backbone
    weights = "random" if backbone.weights == "random" else config.weights
    about = {
        "spec": asdict(segmenter.spec),
        "class_names": data.class_names,
        "task": data.task,
        "labels": data.meaning,
        "seed": config.seed,
        "precision": precision,
        "backbone": {
            "name": backbone.name,
            "weights": weights,
            "fingerprint": backbone.fingerprint,
            "is_trained": backbone.is_trained,
            "mean": backbone.mean,
            "std": backbone.std,
        },
        "init_head": init_head,
        "data": data.record,
        "arguments": {**config.arguments(), "weights": weights},
    }
    return json.loads(json.dumps(about))
