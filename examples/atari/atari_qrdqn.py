"""Train a QR-DQN expert online, or log its noisy play, as Tianshou's README has it:

python atari_qrdqn.py --task PongNoFrameskip-v4
python atari_qrdqn.py --task PongNoFrameskip-v4 --watch --eps-test 0.2 --buffer-size 1000000
    --resume-path log/PongNoFrameskip-v4/qrdqn/policy.pth --save-buffer-name expert.hdf5
"""

from dataclasses import dataclass

from atari_common import AtariArgs, apply_smoke, build_policy, greedy, watch_policy
from tianshou.data import VectorReplayBuffer

from tianshou_ext.acting import Acting
from tianshou_ext.cli import launch
from tianshou_ext.data.collect import collect_atari
from tianshou_ext.envs.atari import make_atari_env, make_atari_venv
from tianshou_ext.errors import InputError
from tianshou_ext.experiment import (
    check_counts,
    link_best,
    make_test_collector,
    run_folder,
    use_threads,
)
from tianshou_ext.tianshou_api import Collector, run_online
from tianshou_ext.trainer import RunLogger


@dataclass
class Args(AtariArgs):
    """QR-DQN online (discrete CQL without its conservative term), and logging of its play."""

    seed: int = 0
    """Of the networks, the sampling and the games."""
    n_step: int = 3
    """Rewards summed before bootstrapping."""
    eps_test: float = 0.005
    """Share of random actions in test games and in logged play."""
    eps_train: float = 1.0
    """Share of random actions at first; falls linearly over the first million steps."""
    eps_train_final: float = 0.05
    """Share of random actions after that."""
    num_quantiles: int = 200
    """Quantiles of the critic."""
    target_update_freq: int = 500
    """Gradient steps between copies to the target network."""
    epoch: int = 100
    """Epochs in all."""
    step_per_epoch: int = 100_000
    """Environment steps an epoch."""
    step_per_collect: int = 10
    """Environment steps between two rounds of gradient steps."""
    update_per_step: float = 0.1
    """Gradient steps for each environment step."""
    training_num: int = 10
    """Games played side by side to learn from."""
    save_buffer_name: str | None = None
    """With --watch: log --buffer-size rows of play with --eps-test noise to this HDF5."""


def log_play(args: Args) -> None:
    """Log the policy's noisy play."""
    if args.resume_path is None and not args.smoke:
        raise InputError("expected --resume-path with --watch, got none; name whose play to log")
    limit = apply_smoke(args)
    env = make_atari_env(args.task, seed=args.seed, frame_stack=args.frames_stack)
    policy = build_policy(args, "discrete_cql", env)
    about = collect_atari(
        args.task,
        str(args.save_buffer_name),
        args.buffer_size,
        greedy(policy),
        eps=args.eps_test,
        seed=args.seed,
        frame_stack=args.frames_stack,
        provenance={"source": f"QR-DQN from {args.resume_path}"},
        **limit,
    )
    print(f"{args.save_buffer_name}: {args.buffer_size} rows, score {about['score_mean']}")


def main(args: Args) -> None:
    if args.watch and args.save_buffer_name:
        log_play(args)
        return
    limit = apply_smoke(args)
    if args.smoke:
        args.epoch, args.step_per_epoch, args.step_per_collect, args.training_num = 1, 20, 10, 1
    use_threads(args.threads)
    check_counts(args, "step_per_collect", "training_num")
    acting = Acting(
        max_epoch=args.epoch,
        step_per_epoch=args.step_per_epoch,
        batch_size=args.batch_size,
        update_per_step=args.update_per_step,
        step_per_collect=args.step_per_collect,
        episode_per_test=args.test_num,
    )
    acting.collect(args.training_num)  # refuses what does not add up to whole epochs
    env = make_atari_env(args.task, seed=args.seed, frame_stack=args.frames_stack)
    policy = build_policy(args, "discrete_cql", env)
    folder = run_folder(args.logdir, args.task, "qrdqn", args.seed)
    if args.watch:
        watch_policy(policy, args, folder)
        return
    stack = {"frame_stack": args.frames_stack, **limit}
    train_envs = make_atari_venv(
        args.task, args.training_num, seed=args.seed, training=True, **stack
    )
    test_envs = make_atari_venv(args.task, args.test_num, seed=args.seed + 1, **stack)
    buffer = VectorReplayBuffer(
        args.buffer_size,
        args.training_num,
        stack_num=args.frames_stack,
        ignore_obs_next=True,
        save_only_last_obs=True,
    )
    train_collector = Collector(policy, train_envs, buffer, exploration_noise=True)
    test_collector = make_test_collector(policy, test_envs)
    train_collector.reset()
    policy.set_eps(1.0)
    train_collector.collect(n_step=args.batch_size * args.training_num)  # warm-up, as Tianshou
    folder.mkdir(parents=True, exist_ok=True)
    logger = RunLogger(
        policy,
        folder,
        save_interval=10_000,
        log_interval=100,
        batch_size=args.batch_size,
        update_per_epoch=acting.update_per_epoch,
        run={},
        tensorboard=True,
    )

    def anneal(epoch: int, env_step: int) -> None:
        done = min(1.0, env_step / 1_000_000)
        policy.set_eps(args.eps_train + done * (args.eps_train_final - args.eps_train))

    run_online(
        policy,
        train_collector=train_collector,
        test_collector=test_collector,
        max_epoch=args.epoch,
        step_per_epoch=args.step_per_epoch,
        step_per_collect=args.step_per_collect,
        update_per_step=args.update_per_step,
        batch_size=args.batch_size,
        episode_per_test=args.test_num,
        logger=logger,
        train_fn=anneal,
        test_fn=lambda epoch, env_step: policy.set_eps(args.eps_test),
    )
    logger.save()
    logger.finalize()
    train_envs.close()
    test_envs.close()
    link_best(folder)
    print(f"qrdqn on {args.task}: best test {logger.best:.1f}; see {folder}")


if __name__ == "__main__":
    launch(main, Args, tianshou_flags=True)
