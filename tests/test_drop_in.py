"""A run as Tianshou's own TD3+BC examples build it, on both lines, with our class in their place.

Networks, optimizers, buffer, environments, normalisation, collector, logger and trainer are
Tianshou's; the environment is Pendulum and the data are made up.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box
from tianshou.data import Collector, CollectStats, ReplayBuffer
from tianshou.env import DummyVectorEnv, VectorEnvNormObs
from tianshou.exploration import GaussianNoise
from tianshou.utils import RunningMeanStd, TensorboardLogger
from tianshou.utils.net.common import Net
from tianshou.utils.space_info import SpaceInfo

from tianshou_ext.policy import BCPolicy, OfflinePolicy, ReBRACPolicy, TD3BCPolicy
from tianshou_ext.tianshou_api import LINE

tensorboard = pytest.importorskip("torch.utils.tensorboard")

if LINE >= 2:
    from tianshou import algorithm as tianshous
    from tianshou.algorithm.modelfree.ddpg import ContinuousDeterministicPolicy
    from tianshou.algorithm.optim import AdamOptimizerFactory
    from tianshou.trainer import OfflineTrainerParams
    from tianshou.utils.net.continuous import ContinuousActorDeterministic as Actor
    from tianshou.utils.net.continuous import ContinuousCritic as Critic
else:
    from tianshou import policy as tianshous
    from tianshou.trainer import OfflineTrainer
    from tianshou.utils.net.continuous import Actor, Critic

TASK, SEED, HIDDEN_SIZES, LR, TEST_NUM = "Pendulum-v1", 0, [16, 16], 3e-4, 2
EPOCH, STEP_PER_EPOCH, BATCH_SIZE = 2, 10, 32
HYPERPARAMETERS = {
    "tau": 0.005,
    "gamma": 0.99,
    "policy_noise": 0.2,
    "update_actor_freq": 2,
    "noise_clip": 0.5,
    "alpha": 2.5,
}

pytestmark = pytest.mark.filterwarnings("ignore:action_scaling and action_bound_method")


def make_buffer() -> ReplayBuffer:
    """Return transitions under Tianshou's keys; episodes of 50 steps, none truncated."""
    rng = np.random.default_rng(SEED)
    obs = rng.normal(3.0, 2.0, (301, 3)).astype(np.float32)
    ends = np.arange(300) % 50 == 49
    return ReplayBuffer.from_data(
        obs=obs[:-1],
        act=rng.uniform(-1.0, 1.0, (300, 1)).astype(np.float32),
        rew=rng.normal(-5.0, 2.0, 300),
        terminated=ends,
        truncated=np.zeros(300, bool),
        done=ends,
        obs_next=obs[1:],
    )


def normalize_in_place(buffer: ReplayBuffer) -> RunningMeanStd:
    """Normalise all observations of a buffer as Tianshou's examples do; return the statistics."""
    stats = RunningMeanStd()
    stats.update(buffer.obs)
    deviation = np.sqrt(stats.var + np.finfo(np.float32).eps.item())
    for key in ("obs", "obs_next"):
        buffer._meta[key] = (buffer._meta[key] - stats.mean) / deviation
    return stats


def make_test_envs() -> VectorEnvNormObs:
    envs = DummyVectorEnv([lambda: gymnasium.make(TASK) for _ in range(TEST_NUM)])
    envs = VectorEnvNormObs(envs, update_obs_rms=False)
    np.random.seed(SEED)
    torch.manual_seed(SEED)
    envs.seed(SEED)
    return envs


def make_networks(max_action: float) -> tuple[Any, Any, Any]:
    """Return Tianshou's actor, which spans [-max_action, max_action], and two critics."""
    actor = Actor(
        preprocess_net=Net(state_shape=(3,), hidden_sizes=HIDDEN_SIZES),
        action_shape=(1,),
        max_action=max_action,
    )
    critics = []
    for _ in range(2):
        net = Net(state_shape=(3,), action_shape=(1,), hidden_sizes=HIDDEN_SIZES, concat=True)
        critics.append(Critic(preprocess_net=net))
    return actor, *critics


def adam(module: torch.nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(module.parameters(), lr=LR)


def check_training(
    policy: OfflinePolicy, before: dict[str, torch.Tensor], folder: Path, result: Any
) -> None:
    """Check that a run trained every network, measured, and wrote what the example writes."""
    assert policy.num_updates == EPOCH * STEP_PER_EPOCH
    assert np.isfinite(result.best_reward)
    for key, tensor in policy.state_dict().items():
        assert torch.isfinite(tensor).all(), key
        if key.split(".")[0].removesuffix("_target") in ("actor", "critic"):
            assert not torch.equal(tensor, before[key]), f"{key} never moved"
    assert (folder / "policy.pth").is_file()
    assert list(folder.glob("events.*"))


def check_test(policy: OfflinePolicy, envs: VectorEnvNormObs, collector: Collector) -> None:
    envs.seed(SEED)
    collector.reset()
    stats = collector.collect(n_episode=TEST_NUM)
    assert stats.n_collected_episodes == TEST_NUM
    assert np.isfinite(stats.returns).all()


@pytest.mark.skipif(LINE != 1, reason="Tianshou 1.2's example")
def test_the_example_of_tianshou_1_with_our_class(tmp_path):
    env = gymnasium.make(TASK)
    max_action = SpaceInfo.from_env(env).action_info.max_action
    test_envs = make_test_envs()
    actor, critic1, critic2 = make_networks(max_action)
    policy = TD3BCPolicy(
        actor=actor,
        actor_optim=adam(actor),
        critic=critic1,
        critic_optim=adam(critic1),
        critic2=critic2,
        critic2_optim=adam(critic2),
        exploration_noise=GaussianNoise(sigma=0.1),
        estimation_step=3,
        action_space=env.action_space,
        observation_space=env.observation_space,
        action_scaling=True,
        action_bound_method="clip",
        lr_scheduler=None,
        **HYPERPARAMETERS,
    )
    assert policy.config.n_step == 3
    assert policy.config.exploration_noise == 0.1
    test_collector = Collector[CollectStats](policy, test_envs)
    logger = TensorboardLogger(tensorboard.SummaryWriter(tmp_path))
    replay_buffer = make_buffer()
    test_envs.set_obs_rms(normalize_in_place(replay_buffer))
    before = {key: tensor.clone() for key, tensor in policy.state_dict().items()}
    result = OfflineTrainer(
        policy=policy,
        buffer=replay_buffer,
        test_collector=test_collector,
        max_epoch=EPOCH,
        step_per_epoch=STEP_PER_EPOCH,
        episode_per_test=TEST_NUM,
        batch_size=BATCH_SIZE,
        save_best_fn=lambda best: torch.save(best.state_dict(), tmp_path / "policy.pth"),
        logger=logger,
        show_progress=False,
        verbose=False,
    ).run()
    check_training(policy, before, tmp_path, result)
    policy.load_state_dict(torch.load(tmp_path / "policy.pth", map_location="cpu"))
    check_test(policy, test_envs, test_collector)


@pytest.mark.skipif(LINE != 2, reason="Tianshou 2.x's example")
def test_the_example_of_tianshou_2_with_our_class(tmp_path):
    env = gymnasium.make(TASK)
    max_action = SpaceInfo.from_env(env).action_info.max_action
    test_envs = make_test_envs()
    actor, critic1, critic2 = make_networks(max_action)
    policy = ContinuousDeterministicPolicy(
        actor=actor,
        exploration_noise=GaussianNoise(sigma=0.1),
        action_space=env.action_space,
    )
    algorithm = TD3BCPolicy(
        policy=policy,
        policy_optim=AdamOptimizerFactory(lr=LR),
        critic=critic1,
        critic_optim=AdamOptimizerFactory(lr=LR),
        critic2=critic2,
        critic2_optim=AdamOptimizerFactory(lr=LR),
        n_step_return_horizon=3,
        **HYPERPARAMETERS,
    )
    assert algorithm.config.n_step == 3
    assert algorithm.config.exploration_noise == 0.1
    assert algorithm.optimizers["actor"].param_groups[0]["lr"] == LR
    test_collector = Collector[CollectStats](algorithm, test_envs)
    logger = TensorboardLogger(tensorboard.SummaryWriter(tmp_path))
    replay_buffer = make_buffer()
    test_envs.set_obs_rms(normalize_in_place(replay_buffer))
    before = {key: tensor.clone() for key, tensor in algorithm.state_dict().items()}
    result = algorithm.run_training(
        OfflineTrainerParams(
            buffer=replay_buffer,
            test_collector=test_collector,
            max_epochs=EPOCH,
            epoch_num_steps=STEP_PER_EPOCH,
            test_step_num_episodes=TEST_NUM,
            batch_size=BATCH_SIZE,
            save_best_fn=lambda best: torch.save(best.state_dict(), tmp_path / "policy.pth"),
            logger=logger,
            show_progress=False,
            verbose=False,
        )
    )
    check_training(algorithm, before, tmp_path, result)
    algorithm.load_state_dict(torch.load(tmp_path / "policy.pth", map_location="cpu"))
    check_test(algorithm, test_envs, test_collector)


class HoldsAnActor:
    """What ``policy=`` needs to have on either line."""

    def __init__(self, actor: Any, action_space: Any) -> None:
        self.actor, self.action_space = actor, action_space


@pytest.mark.parametrize("method", [TD3BCPolicy, ReBRACPolicy])
def test_policy_is_another_spelling_of_actor_and_space(method):
    space = Box(-2.0, 2.0, (1,))
    policies = []
    for by_policy in (True, False):
        torch.manual_seed(SEED)
        actor, critic1, critic2 = make_networks(1.0)
        optims = {"critic_optim": adam(critic1), "critic2_optim": adam(critic2)}
        if by_policy:
            given = {"policy": HoldsAnActor(actor, space), "policy_optim": adam(actor)}
        else:
            given = {"actor": actor, "actor_optim": adam(actor), "action_space": space}
        policies.append(method(critic=critic1, critic2=critic2, **optims, **given))
    buffer = make_buffer()
    for policy in policies:
        for _ in range(4):
            policy.learn(policy.process_fn(None, buffer, np.arange(64)))
    one, other = (policy.state_dict() for policy in policies)
    assert all(torch.equal(one[key], other[key]) for key in one)


def tianshous_update(networks: Any, **options: Any) -> Callable[[ReplayBuffer, Any], Any]:
    """Return a function that updates Tianshou's own TD3+BC on rows of a buffer."""
    actor, critic1, critic2 = networks
    space = Box(-1.0, 1.0, (1,))
    common = {"critic": critic1, "critic2": critic2, **HYPERPARAMETERS, **options}
    if LINE >= 2:
        factories = {
            f"{name}_optim": AdamOptimizerFactory(lr=LR) for name in ("policy", "critic", "critic2")
        }
        policy = ContinuousDeterministicPolicy(actor=actor, action_space=space)
        theirs = tianshous.TD3BC(policy=policy, n_step_return_horizon=3, **factories, **common)
        prepare, learn = theirs._preprocess_batch, theirs._update_with_batch
    else:
        theirs = tianshous.TD3BCPolicy(
            actor=actor,
            actor_optim=adam(actor),
            critic_optim=adam(critic1),
            critic2_optim=adam(critic2),
            action_space=space,
            estimation_step=3,
            **common,
        )
        prepare, learn = theirs.process_fn, theirs.learn

    def update(buffer: ReplayBuffer, rows: Any) -> Any:
        theirs.train()
        return learn(prepare(buffer[rows], buffer, rows))

    return update


def test_cloning_by_tianshous_actor_reaches_the_bounds():
    """Its actor ends in tanh; squashed once more, no action would be beyond 0.76."""
    actor = make_networks(1.0)[0]
    policy = BCPolicy(actor=actor, optim=adam(actor), action_space=Box(-1.0, 1.0, (1,)))
    batch = make_buffer().sample(64)[0]
    batch.act = np.ones((64, 1), np.float32)
    for _ in range(500):
        metrics = policy.learn(batch).metrics
    assert metrics["loss"] < 0.02
    assert policy(batch).act.max() > 0.9


@pytest.mark.skipif(LINE != 1, reason="2.x has another class")
def test_cloning_is_tianshous():
    torch.manual_seed(SEED)
    ours, theirs = make_networks(1.0)[0], make_networks(1.0)[0]
    theirs.load_state_dict(ours.state_dict())
    space = Box(-1.0, 1.0, (1,))
    policy = BCPolicy(actor=ours, optim=adam(ours), action_space=space)
    tianshou = tianshous.ImitationPolicy(actor=theirs, optim=adam(theirs), action_space=space)
    buffer = make_buffer()
    for _ in range(10):
        batch = buffer.sample(BATCH_SIZE)[0]
        loss = tianshou.learn(batch).loss
        assert policy.learn(batch).metrics["loss"] == pytest.approx(loss, rel=1e-4)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_td3_bc_is_tianshous():
    """Same weights, same rows, no target noise: losses and weights after 10 steps agree."""
    torch.manual_seed(SEED)
    ours, theirs = make_networks(1.0), make_networks(1.0)
    for mine, other in zip(ours, theirs, strict=True):
        other.load_state_dict(mine.state_dict())
    actor, critic1, critic2 = ours
    policy = TD3BCPolicy(
        actor=actor,
        actor_optim=adam(actor),
        critic=critic1,
        critic_optim=adam(critic1),
        critic2=critic2,
        critic2_optim=adam(critic2),
        estimation_step=3,
        action_space=Box(-1.0, 1.0, (1,)),
        **{**HYPERPARAMETERS, "policy_noise": 0.0},
    )
    update = tianshous_update(theirs, policy_noise=0.0)
    buffer, rng = make_buffer(), np.random.default_rng(SEED)
    for _ in range(10):
        # Not row 0, which has no successor for Tianshou in a buffer fresh from from_data.
        rows = rng.integers(1, len(buffer), BATCH_SIZE)
        stats = update(buffer, rows)
        metrics = policy.learn(policy.process_fn(None, buffer, rows)).metrics
        both = stats.critic1_loss + stats.critic2_loss
        assert metrics["loss/critic"] == pytest.approx(both, rel=1e-4)
        assert metrics["loss/actor"] == pytest.approx(stats.actor_loss, rel=1e-4)
    for mine, other in zip(ours, theirs, strict=True):
        for a, b in zip(mine.parameters(), other.parameters(), strict=True):
            assert torch.allclose(a, b, atol=1e-5)
