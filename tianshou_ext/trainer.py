"""Training a policy from a buffer, through Tianshou's own offline trainer.

``offline_trainer`` adds what a run needs around it: a folder with the checkpoint, the best
policy, a CSV and TensorBoard logs of what was measured, and exact resumption.
"""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from tianshou_ext.checkpoint import load_checkpoint, save_checkpoint, versions
from tianshou_ext.data.digest import data_digest
from tianshou_ext.divergence import DivergenceWatch, OnDivergence
from tianshou_ext.errors import InputError, at_least_one
from tianshou_ext.files import atomic_write
from tianshou_ext.policy.base import OfflinePolicy
from tianshou_ext.policy.registry import method_name
from tianshou_ext.processor import flushed_denormals
from tianshou_ext.tianshou_api import BaseLogger, Collector, ReplayBuffer, run_offline

CHECKPOINT, BEST, FACTS, PROGRESS = "checkpoint.pt", "policy.pth", "run.json", "progress.csv"
"""Files of a run: all of its state, the policy at its best test, what it is, a row per test."""
PROGRESS_COLUMNS = (
    "epoch",
    "step",
    "return_mean",
    "return_std",
    "episodes",
    "seconds",
    "env_step",
    "metrics",
)


class RunLogger(BaseLogger):
    """What Tianshou's trainers call: writes the CSV, TensorBoard logs and checkpoints of a run.

    :param folder: of the run; None keeps nothing on disk.
    :param save_interval: gradient steps between two checkpoints.
    :param log_interval: gradient steps between two rows of metrics in TensorBoard.
    :param run: counters of the run that is resumed.
    :param on_divergence: what to do when the policy diverges.
    :param first: epochs and gradient steps of the phases before this one.
    """

    def __init__(
        self,
        policy: OfflinePolicy,
        folder: Path | None,
        *,
        save_interval: int,
        log_interval: int,
        batch_size: int,
        update_per_epoch: int,
        run: Mapping[str, Any],
        tensorboard: bool,
        on_divergence: OnDivergence = "stop",
        first: tuple[int, int] = (0, 0),
    ) -> None:
        # Of training, test, update and info; 1.2 and 2.x name the first differently.
        super().__init__(1, 1, 1, 1)
        self.policy = policy
        self.folder = folder
        self.save_interval = save_interval
        self.log_interval = log_interval
        self.batch_size = batch_size
        self.update_per_epoch = update_per_epoch
        self.first = first
        self.best: float | None = run.get("best")
        self.rows: list[list[Any]] = run.get("rows", [])
        self.data: str | None = run.get("data")
        self.buffer_name: str = run.get("buffer", "")
        """Of the file of what was collected, in a run that acts."""
        self.seconds_before = float(run.get("seconds", 0.0))
        self.start = time.monotonic()
        checkpoint = None if folder is None else folder / CHECKPOINT
        self.watch = DivergenceWatch(policy, on_divergence, checkpoint)
        self._writer: Any = None
        if tensorboard and folder is not None:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise InputError(
                    "expected the tensorboard package for TensorBoard logs, found none; "
                    'pip install "tianshou_ext[cli]", or pass tensorboard=False'
                ) from error
            self._writer = SummaryWriter(str(folder), purge_step=policy.num_updates + 1)

    @property
    def seconds(self) -> float:
        """Wall time of the run so far, over all its parts."""
        return self.seconds_before + time.monotonic() - self.start

    def save(self) -> None:
        """Write the checkpoint; of a policy that has diverged only if that is to warn."""
        self.watch.check(weights=True)
        if self.folder is not None:
            self.write_checkpoint(self.folder)

    def write_checkpoint(self, folder: Path) -> None:
        """Write all state of the run."""
        run = {
            "best": self.best,
            "rows": self.rows,
            "seconds": self.seconds,
            "data": self.data,
            "buffer": self.buffer_name,
        }
        save_checkpoint(self.policy, folder / CHECKPOINT, run)

    @property
    def results(self) -> list[dict[str, float]]:
        """A row per test: what ``progress.csv`` has but the metrics."""
        return [dict(zip(PROGRESS_COLUMNS[:-1], row[:-1], strict=True)) for row in self.rows]

    # ---- Tianshou's side ------------------------------------------------------------------

    def log_update_data(self, log_data: dict[str, Any], step: int) -> None:
        if step % self.log_interval == 0:
            self._scalars(log_data.get("metrics", {}), step)
            self.watch.check()
        if step % self.save_interval == 0:
            self.save()

    def log_test_data(self, log_data: dict[str, Any], step: int) -> None:
        stats = log_data["returns_stat"]
        mean, std = float(stats["mean"]), float(stats["std"])
        updates = self.policy.num_updates
        self._scalars({"eval/return_mean": mean, "eval/return_std": std}, updates)
        repeated = bool(self.rows) and self.rows[-1][1] == updates
        epoch, inside = divmod(updates - self.first[1], self.update_per_epoch)
        if repeated or inside:
            return  # the test before a resumed run goes on, where it repeats or is inside an epoch
        self.rows.append(
            [
                self.first[0] + epoch,
                updates,
                mean,
                std,
                int(log_data["n_collected_episodes"]),
                round(self.seconds, 1),
                self.policy.online_steps,
                json.dumps(self.policy.metrics),
            ]
        )
        if self.folder is not None:
            self._write_progress(self.folder / PROGRESS)
            if self.best is None or mean > self.best:
                save_checkpoint(self.policy, self.folder / BEST)
        self.best = mean if self.best is None else max(self.best, mean)

    def _write_progress(self, path: Path) -> None:
        def write(partial: Path) -> None:
            with partial.open("w", newline="") as file:
                writer = csv.writer(file)
                writer.writerow(PROGRESS_COLUMNS)
                writer.writerows(self.rows)

        atomic_write(path, write)

    def _scalars(self, values: Mapping[str, float], step: int) -> None:
        if self._writer is not None:
            for key, value in values.items():
                self._writer.add_scalar(key, value, step)

    def log_info_data(self, log_data: dict[str, Any], step: int) -> None:
        """Nothing here is worth keeping beside what the other calls write."""

    def save_data(
        self,
        epoch: int,
        env_step: int,
        update_step: int,
        save_checkpoint_fn: Callable[[int, int, int], str] | None = None,
    ) -> None:
        self.save()
        if save_checkpoint_fn is not None:
            save_checkpoint_fn(epoch, env_step, update_step)

    def restore_data(self) -> tuple[int, int, int]:
        step = self.policy.num_updates
        return step // self.update_per_epoch, step * self.batch_size, step

    def prepare_dict_for_logging(self, log_data: dict[str, Any]) -> dict[str, Any]:
        return log_data

    def write(self, step_type: str, step: int, data: dict[str, Any]) -> None:
        self._scalars({k: v for k, v in data.items() if isinstance(v, int | float)}, step)

    def finalize(self) -> None:
        if self._writer is not None:
            self._writer.close()

    @staticmethod
    def restore_logged_data(log_path: str) -> dict[str, Any]:
        """Return the rows of a run's CSV as columns."""
        return {"progress": read_progress(Path(log_path) / PROGRESS)}


def read_progress(path: str | Path) -> list[dict[str, float]]:
    """Read a run's ``progress.csv``: a row per test, all but the metrics."""
    with Path(path).open(newline="") as file:
        return [
            {key: float(value) for key, value in row.items() if key != "metrics"}
            for row in csv.DictReader(file)
        ]


def resume_run(
    policy: OfflinePolicy,
    folder: Path | None,
    resume: Literal["auto", "never"],
    buffer: ReplayBuffer | None = None,
) -> dict[str, Any]:
    """Go on with the run in ``folder`` if there is one.

    :param buffer: the data set, if the run learns from one.
    :return: the run's counters; of a new run, none but what tells its data set from others.
    :raises InputError: if a run is there and is not to be resumed, or is another one, or one on
        other data.
    """
    if folder is None:
        return {}
    data = None if buffer is None else data_digest(buffer)
    if not (folder / CHECKPOINT).exists():
        return {"data": data}
    if resume == "never":
        raise InputError(
            f"expected a folder without a run, found {folder / CHECKPOINT}; choose another "
            "--logdir, delete it, or pass --resume auto to go on with it"
        )
    run = load_checkpoint(policy, folder / CHECKPOINT)
    before = run.get("data")  # older files have none
    if data is not None and before not in (None, data):
        raise InputError(
            f"expected the data set of the run at {folder} ({before}), got another ({data}); use "
            "the old one, choose another --logdir, or delete the folder"
        )
    return {**run, "data": before if data is None else data}


def check_settings(folder: Path | None, settings: Mapping[str, Any]) -> None:
    """Check that a run that has begun goes on as it was.

    :raises InputError: if a setting differs from what its ``run.json`` says.
    """
    if folder is None or not (folder / CHECKPOINT).exists():
        return
    try:
        noted = read_facts(folder)
    except InputError:  # missing or damaged, and written anew by the run that goes on
        return
    parts = [noted.get(name) for name in ("online", "mixing")]
    before = {
        **noted,
        **{k: v for part in parts if isinstance(part, dict) for k, v in part.items()},
    }
    differing = [
        f"{name} was {before[name]}, is {value}"
        for name, value in settings.items()
        if before.get(name, value) != value
    ]
    if differing:
        raise InputError(
            f"expected the settings of the run at {folder} ({', '.join(differing)}); use the old "
            "ones, choose another --logdir, or delete the folder"
        )


def read_facts(folder: Path, name: str = FACTS) -> dict[str, Any]:
    """Return what a run's folder says about itself.

    :raises InputError: if the file is missing or damaged.
    """
    path = folder / name
    if not path.exists():
        raise InputError(
            f"expected a run in {folder}, found no {name}; give the folder of a run whose training "
            "has begun"
        )
    try:
        facts: dict[str, Any] = json.loads(path.read_text())
    except ValueError as error:
        raise InputError(
            f"expected JSON in {path}, got a damaged file ({error}); train the run again"
        ) from error
    return facts


def describe_run(policy: OfflinePolicy, folder: Path | None, about: Mapping[str, Any]) -> None:
    """Make the folder of a run, and note in ``run.json`` what is run.

    :param about: facts beside the method, its config and versions.
    """
    if folder is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    for left_behind in folder.glob("*.partial"):  # by a run that was killed while writing
        left_behind.unlink()
    facts = {
        "method": method_name(policy),
        "config": asdict(policy.config),
        "precision": policy.precision,
        "compiled": policy.is_compiled,
        **about,
    }
    text = json.dumps({**facts, "versions": versions()}, indent=2)
    atomic_write(folder / FACTS, lambda partial: partial.write_text(text))


def offline_trainer(
    policy: OfflinePolicy,
    buffer: ReplayBuffer,
    *,
    max_epoch: int,
    update_per_epoch: int,
    batch_size: int,
    test_collector: Collector[Any] | None = None,
    episode_per_test: int = 10,
    logdir: str | Path | None = None,
    resume: Literal["auto", "never"] = "auto",
    save_interval: int | None = None,
    log_interval: int = 100,
    tensorboard: bool = False,
    stop_fn: Callable[[float], bool] | None = None,
    save_best_fn: Callable[[Any], None] | None = None,
    on_divergence: OnDivergence = "stop",
    about: Mapping[str, Any] | None = None,
    show_progress: bool = True,
    verbose: bool = True,
) -> list[dict[str, float]]:
    """Train ``policy`` on ``buffer``, as Tianshou's ``offline_trainer`` of old.

    With a ``logdir``, the folder gets ``checkpoint.pt`` (everything, ``tianshou_ext.checkpoint``),
    ``policy.pth`` (the policy at its best test), ``progress.csv``, ``run.json`` and, if asked
    for, TensorBoard logs. A run that was interrupted at any moment goes on from its last
    checkpoint and ends with the same weights, to the bit, as one that was not.

    :param max_epoch: epochs in all, those before an interruption included.
    :param update_per_epoch: gradient steps an epoch.
    :param batch_size: transitions a gradient step.
    :param test_collector: plays ``episode_per_test`` episodes before training and after each
        epoch; None trains without an environment.
    :param resume: ``auto`` goes on from the checkpoint in ``logdir`` if there is one; ``never``
        starts anew, and refuses to overwrite a checkpoint.
    :param save_interval: gradient steps between checkpoints; an epoch if None.
    :param log_interval: gradient steps between metrics in TensorBoard.
    :param stop_fn: ends the training when true of the best mean return so far.
    :param save_best_fn: called with the policy at each new best test, as in Tianshou.
    :param on_divergence: at NaN, or values beyond what the data's rewards can add up to, looked for
        every ``log_interval`` steps and before each checkpoint: ``stop`` raises, ``warn`` warns.
    :param about: facts for ``run.json`` beside the trainer's own: task, dataset, label, seed.
    :return: a row per test: epoch, step, return_mean, return_std, episodes, seconds, env_step.
    :raises InputError: if a count is below 1, or the checkpoint is of another run, of other
        settings or other data.
    :raises DivergenceError: if the training diverges and is to stop; the checkpoint is then the
        last good one.
    :raises OSError: if a file cannot be written; older files are then as they were.
    """
    counts = {
        "max_epoch": max_epoch,
        "update_per_epoch": update_per_epoch,
        "batch_size": batch_size,
        "episode_per_test": episode_per_test,
        "log_interval": log_interval,
        "save_interval": update_per_epoch if save_interval is None else save_interval,
    }
    at_least_one(counts)
    folder = None if logdir is None else Path(logdir)
    run = resume_run(policy, folder, resume, buffer)
    check_settings(folder, {"batch_size": batch_size, "update_per_epoch": update_per_epoch})
    policy.show_progress = show_progress
    if folder is not None:
        policy.on_progress = lambda: save_checkpoint(policy, folder / CHECKPOINT, run)
    with flushed_denormals():
        policy.process_buffer(buffer)
    describe_run(policy, folder, {**(about or {}), **counts, "transitions": len(buffer)})
    logger = RunLogger(
        policy,
        folder,
        save_interval=counts["save_interval"],
        log_interval=log_interval,
        batch_size=batch_size,
        update_per_epoch=update_per_epoch,
        run=run,
        tensorboard=tensorboard,
        on_divergence=on_divergence,
    )
    if policy.num_updates < max_epoch * update_per_epoch:
        with flushed_denormals():
            run_offline(
                policy,
                buffer,
                max_epoch=max_epoch,
                update_per_epoch=update_per_epoch,
                batch_size=batch_size,
                test_collector=test_collector,
                episode_per_test=episode_per_test,
                logger=logger,
                stop_fn=stop_fn,
                save_best_fn=save_best_fn,
                show_progress=show_progress,
                verbose=verbose,
            )
        logger.save()
    logger.finalize()
    return logger.results
