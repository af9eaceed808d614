"""Our policies in Tianshou's own trainers and collectors, and Tianshou's networks in ours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from tianshou.data import Batch, PrioritizedReplayBuffer, VectorReplayBuffer
from tianshou.env import DummyVectorEnv
from tianshou.utils.net.common import Net
from torch import nn

from tianshou_ext.checkpoint import load_checkpoint, save_checkpoint
from tianshou_ext.policy import (
    METHODS,
    BCPolicy,
    DiscreteBCQPolicy,
    DiscreteCQLPolicy,
    DiscreteCRRPolicy,
    OfflinePolicy,
)
from tianshou_ext.tianshou_api import LINE, Collector, ReplayBuffer, training_step

if LINE >= 2:
    from tianshou.algorithm import algorithm_base as base
    from tianshou.algorithm.algorithm_base import Algorithm as TheirBase
    from tianshou.trainer import (
        OfflineTrainer,
        OfflineTrainerParams,
        OffPolicyTrainer,
        OffPolicyTrainerParams,
    )
    from tianshou.utils.net.discrete import DiscreteActor as Actor
    from tianshou.utils.net.discrete import DiscreteCritic as Critic
else:
    from tianshou.policy import BasePolicy as TheirBase
    from tianshou.policy import base
    from tianshou.trainer import OfflineTrainer, OffpolicyTrainer
    from tianshou.utils.net.discrete import Actor, Critic

QUIET = {"verbose": False, "show_progress": False}

DISCRETE = [name for name, method in METHODS.items() if method.actions != "continuous"]
every_discrete_method = pytest.mark.parametrize("name", DISCRETE)
every_method_of_single_steps = pytest.mark.parametrize(
    "name", [name for name in DISCRETE if name != "decision_transformer"]
)


def make_envs(count: int = 2) -> DummyVectorEnv:
    return DummyVectorEnv([lambda: gymnasium.make("CartPole-v1") for _ in range(count)])


def build(name: str, env: gymnasium.Env, **options: Any) -> OfflinePolicy:
    policy_class = METHODS[name].policy_class
    spaces = (env.observation_space, env.action_space)
    return policy_class.build(*spaces, hidden_sizes=(32,), **options)


def test_a_policy_is_tianshous_and_starts_without_compiling_what_it_does_not_call(
    cartpole, monkeypatch
):
    """Tianshou's own start takes seconds for that, in each process."""

    def refuse(*args: Any) -> None:
        raise AssertionError("compiled at the start")

    for name in ("_gae" if LINE >= 2 else "_gae_return", "_nstep_return"):
        monkeypatch.setattr(base, name, refuse)  # fails if there is none of that name
    assert isinstance(build("discrete_cql", cartpole), TheirBase)


def hook(policy: OfflinePolicy) -> Any:
    """Return what a policy wants to be told after each step, or None."""
    return getattr(policy, "on_step", None)


def weights(policy: OfflinePolicy) -> list[torch.Tensor]:
    return [value.clone() for value in policy.state_dict().values()]


def moved(before: list[torch.Tensor], policy: OfflinePolicy) -> bool:
    return not all(map(torch.equal, before, policy.state_dict().values()))


@every_discrete_method
def test_tianshous_offline_trainer(name, cartpole, cartpole_buffer):
    policy = build(name, cartpole)
    before = weights(policy)
    collector = Collector(policy, make_envs(1), on_step_hook=hook(policy))
    if LINE >= 2:
        params = OfflineTrainerParams(
            buffer=cartpole_buffer,
            max_epochs=1,
            epoch_num_steps=5,
            batch_size=8,
            test_step_num_episodes=1,
            test_collector=collector,
            **QUIET,
        )
        result = policy.run_training(params)
        assert result.update_step == 5
    else:
        trainer = OfflineTrainer(
            policy=policy,
            buffer=cartpole_buffer,
            max_epoch=1,
            step_per_epoch=5,
            batch_size=8,
            episode_per_test=1,
            test_collector=collector,
            **QUIET,
        )
        result = trainer.run()
        assert result.gradient_step == 5
    assert policy.num_updates == 5
    assert moved(before, policy)
    assert result.best_reward >= 1.0


@every_method_of_single_steps
def test_tianshous_off_policy_trainer_while_the_buffer_grows(name, cartpole):
    policy = build(name, cartpole)
    before = weights(policy)
    policy.set_eps(0.1)
    buffer = VectorReplayBuffer(400, 2)
    training = Collector(policy, make_envs(2), buffer, exploration_noise=True)
    training.reset()
    training.collect(n_step=20)
    test = Collector(policy, make_envs(1))
    if LINE >= 2:
        params = OffPolicyTrainerParams(
            training_collector=training,
            test_collector=test,
            max_epochs=1,
            epoch_num_steps=60,
            collection_step_num_env_steps=20,
            test_step_num_episodes=1,
            batch_size=8,
            update_step_num_gradient_steps_per_sample=0.25,
            test_in_training=False,
            **QUIET,
        )
        OffPolicyTrainer(policy, params).run()
    else:
        trainer = OffpolicyTrainer(
            policy=policy,
            train_collector=training,
            test_collector=test,
            max_epoch=1,
            step_per_epoch=60,
            step_per_collect=20,
            episode_per_test=1,
            batch_size=8,
            update_per_step=0.25,
            test_in_train=False,
            **QUIET,
        )
        trainer.run()
    assert len(buffer) == 80
    assert policy.num_updates == 15
    assert moved(before, policy)


@pytest.mark.skipif(LINE < 2, reason="Tianshou 2.x only")
def test_run_training_takes_off_policy_parameters_too(cartpole):
    policy = build("discrete_cql", cartpole)
    training = Collector(policy, make_envs(1), VectorReplayBuffer(100, 1))
    params = OffPolicyTrainerParams(
        training_collector=training,
        max_epochs=1,
        epoch_num_steps=20,
        collection_step_num_env_steps=10,
        batch_size=8,
        test_in_training=False,
        **QUIET,
    )
    policy.run_training(params)
    assert policy.num_updates == 20


@every_discrete_method
def test_collector_plays_and_logs_what_can_be_trained_on(name, cartpole):
    policy = build(name, cartpole)
    buffer = VectorReplayBuffer(1000, 2)
    collector = Collector(policy, make_envs(2), buffer, on_step_hook=hook(policy))
    collector.reset()
    stats = collector.collect(n_episode=2)
    assert stats.n_collected_episodes == 2
    assert len(buffer) == stats.n_collected_steps
    assert set(np.unique(buffer.act[: len(buffer.buffers[0])])) <= {0, 1}
    with training_step(policy):
        policy.update(buffer=buffer, sample_size=8)
    assert policy.num_updates == 1


@every_method_of_single_steps
def test_learn_takes_a_batch_that_the_buffer_sampled(name, cartpole, cartpole_buffer):
    policy = build(name, cartpole)
    before = weights(policy)
    batch, _ = cartpole_buffer.sample(8)
    stats = policy.learn(batch)
    assert all(np.isfinite(v) for v in stats.get_loss_stats_dict().values())
    assert moved(before, policy)


@pytest.mark.parametrize("name", ["discrete_cql", "bc"])
def test_learn_and_update_agree_on_the_same_rows(name, cartpole, cartpole_buffer):
    ours, theirs = build(name, cartpole), build(name, cartpole)
    for policy in (ours, theirs):
        policy.process_buffer(cartpole_buffer)
    with training_step(ours):
        ours.update(buffer=cartpole_buffer, sample_size=0)
    theirs.learn(cartpole_buffer.sample(0)[0])
    assert not moved(weights(ours), theirs)


def test_update_in_both_lines_orders_and_only_within_a_training_step(cartpole, cartpole_buffer):
    policy = build("discrete_cql", cartpole)
    with training_step(policy):
        policy.update(8, cartpole_buffer)
        policy.update(cartpole_buffer, 8)
        policy.update(sample_size=8, buffer=cartpole_buffer)
    assert policy.num_updates == 3
    with pytest.raises(RuntimeError, match="expected update.. inside a training step"):
        policy.update(8, cartpole_buffer)


def test_update_without_a_buffer_does_nothing_as_in_tianshou(cartpole):
    policy = build("bc", cartpole)
    before = weights(policy)
    with training_step(policy):
        assert policy.update(0, None).get_loss_stats_dict() == {}
    assert not moved(before, policy)


def rewards_of_next_update(policy: OfflinePolicy, buffer: ReplayBuffer, size: int) -> torch.Tensor:
    seen: list[torch.Tensor] = []
    learn = policy.gradient_step
    policy.gradient_step = lambda batch: (seen.append(batch.rew), learn(batch))[1]
    with training_step(policy):
        policy.update(buffer=buffer, sample_size=size)
    policy.gradient_step = learn
    return seen[0]


@pytest.mark.parametrize("count", [50, 200], ids=["a part", "once around"])
def test_update_sees_what_a_ring_got_since(count, cartpole, cartpole_buffer):
    policy = build("bc", cartpole)
    assert rewards_of_next_update(policy, cartpole_buffer, 8).max() == 1.0
    row = cartpole_buffer[0]
    row.info, row.rew = {}, 777.0
    for k in range(count):
        cartpole_buffer.add(row)
        if k == 0:
            rewards_of_next_update(policy, cartpole_buffer, 8)
    share = (rewards_of_next_update(policy, cartpole_buffer, 200) == 777.0).float().mean()
    assert share == pytest.approx(count / 200, abs=0.15)


def test_a_trainer_stages_a_buffer_that_has_grown_anew(cartpole, cartpole_buffer):
    policy = build("bc", cartpole)
    policy.process_buffer(cartpole_buffer)
    row = cartpole_buffer[0]
    row.info, row.rew = {}, 777.0
    for _ in range(100):
        cartpole_buffer.add(row)
    policy.process_buffer(cartpole_buffer)
    assert (rewards_of_next_update(policy, cartpole_buffer, 0) == 777.0).sum() == 100
    replay = policy._replay(cartpole_buffer)
    assert replay is not None  # sampled at full speed, with the policy's own generator
    assert (replay.rew == 777.0).sum() == 100


def test_a_collector_does_not_wake_the_targets(cartpole):
    """Collectors of 2.x switch the mode of the policy inside."""
    policy = build("discrete_cql", cartpole)
    (policy.policy if LINE >= 2 else policy).train()
    assert policy.model.training
    assert not policy.model_target.training


def test_policies_sample_within_a_training_step_and_are_greedy_outside(cartpole):
    policy = build("discrete_crr", cartpole)
    batch = Batch(obs=np.zeros((200, 4), np.float32), info={})
    assert len(set(policy(batch).act.tolist())) == 1
    with training_step(policy):
        assert len(set(policy(batch).act.tolist())) == 2
    assert len(set(policy(batch).act.tolist())) == 1


# ---- Drop-in construction: Tianshou's networks, a torch optimizer, Tianshou's names. ------------


def quantile_net(quantiles: int = 10, **options: Any) -> nn.Module:
    class Quantiles(nn.Module):
        """As in Tianshou's examples: (B, A, N) out of a ``Net`` with one output each."""

        def __init__(self) -> None:
            super().__init__()
            width = 2 * quantiles
            self.net = Net(state_shape=4, action_shape=width, hidden_sizes=[16], **options)

        def forward(self, obs: Any, state: Any = None, info: Any = None) -> tuple[Any, Any]:
            out, state = self.net(obs, state)
            return out.view(-1, 2, quantiles), state

    return Quantiles()


def value_net() -> nn.Module:
    return Net(state_shape=4, action_shape=2, hidden_sizes=[16])


def adam(*modules: nn.Module) -> torch.optim.Optimizer:
    params = {id(p): p for m in modules for p in m.parameters()}
    return torch.optim.Adam(params.values(), lr=1e-2)


def drop_in_cql(
    space: Any, *, norm_layer: Any = None, target_update_freq: int = 100, **options: Any
) -> DiscreteCQLPolicy:
    model = quantile_net(norm_layer=norm_layer)
    return DiscreteCQLPolicy(
        model=model,
        optim=adam(model),
        action_space=space,
        discount_factor=0.9,
        estimation_step=1,
        num_quantiles=10,
        target_update_freq=target_update_freq,
        min_q_weight=2.0,
        **options,
    )


def drop_in_bcq(
    space: Any, *, norm_layer: Any = None, target_update_freq: int = 4
) -> DiscreteBCQPolicy:
    preprocess = Net(state_shape=4, hidden_sizes=[16], norm_layer=norm_layer)
    model = Actor(preprocess_net=preprocess, action_shape=2, softmax_output=False)
    imitator = Actor(preprocess_net=preprocess, action_shape=2, softmax_output=False)
    return DiscreteBCQPolicy(
        model=model,
        imitator=imitator,
        optim=adam(model, imitator),
        action_space=space,
        discount_factor=0.9,
        estimation_step=3,
        target_update_freq=target_update_freq,
        unlikely_action_threshold=0.3,
        imitation_logits_penalty=0.1,
    )


def drop_in_crr(
    space: Any, *, norm_layer: Any = None, target_update_freq: int = 4
) -> DiscreteCRRPolicy:
    preprocess = Net(state_shape=4, hidden_sizes=[16], norm_layer=norm_layer)
    actor = Actor(preprocess_net=preprocess, action_shape=2, softmax_output=False)
    critic = Critic(preprocess_net=preprocess, last_size=2)
    return DiscreteCRRPolicy(
        actor=actor,
        critic=critic,
        optim=adam(actor, critic),
        action_space=space,
        discount_factor=0.9,
        policy_improvement_mode="exp",
        ratio_upper_bound=20.0,
        beta=1.0,
        min_q_weight=10.0,
        target_update_freq=target_update_freq,
    )


def drop_in_bc(space: Any) -> BCPolicy:
    actor = value_net()
    return BCPolicy(actor=actor, optim=adam(actor), action_space=space)


@pytest.mark.parametrize("make", [drop_in_cql, drop_in_bcq, drop_in_crr, drop_in_bc])
def test_tianshous_networks_and_names_drop_in(
    make: Callable[[Any], OfflinePolicy], cartpole, cartpole_buffer
):
    policy = make(cartpole.action_space)
    before = weights(policy)
    with training_step(policy):
        for _ in range(6):
            stats = policy.update(buffer=cartpole_buffer, sample_size=16)
    assert all(np.isfinite(v) for v in stats.get_loss_stats_dict().values())
    assert moved(before, policy)
    trained = {id(p) for g in policy.optimizers.popitem()[1].param_groups for p in g["params"]}
    targets = {id(p) for _, target in policy._targets for p in target.parameters()}
    assert {id(p) for p in policy.parameters() if p.requires_grad} <= trained
    assert not trained & targets
    collector = Collector(policy, make_envs(1))
    collector.reset()
    assert collector.collect(n_episode=1).n_collected_episodes == 1


@pytest.mark.parametrize("make", [drop_in_cql, drop_in_bcq, drop_in_crr])
def test_running_statistics_reach_the_targets(make, cartpole, cartpole_buffer):
    """A target normalises with what it was copied with, not with its initial statistics."""
    policy = make(cartpole.action_space, norm_layer=nn.BatchNorm1d, target_update_freq=2)
    with training_step(policy):
        for _ in range(3):
            policy.update(buffer=cartpole_buffer, sample_size=16)
    pairs = [
        (old, new)
        for source, target in policy._targets
        for old, new in zip(target.buffers(), source.buffers(), strict=True)
    ]
    assert pairs
    counts = [(int(old), int(new)) for old, new in pairs if old.dtype == torch.int64]
    assert all(0 < old < new for old, new in counts), counts


@pytest.mark.skipif(LINE < 2, reason="Tianshou 2.x only")
def test_optimizer_factories_of_tianshou_2_drop_in(cartpole, cartpole_buffer):
    from tianshou.algorithm.optim import AdamOptimizerFactory

    actor = value_net()
    optim = AdamOptimizerFactory(lr=1e-2)
    policy = BCPolicy(actor=actor, optim=optim, action_space=cartpole.action_space)
    before = weights(policy)
    with training_step(policy):
        policy.update(cartpole_buffer, 16)
    assert policy.optimizers["actor"].param_groups[0]["lr"] == 1e-2
    assert moved(before, policy)


@pytest.mark.skipif(LINE < 2, reason="Tianshou 2.x only")
def test_schedulers_of_optimizer_factories_are_stepped_and_saved(cartpole, tmp_path):
    from tianshou.algorithm.optim import AdamOptimizerFactory, LRSchedulerFactoryLinear

    def make() -> OfflinePolicy:
        optim = AdamOptimizerFactory(lr=1.0).with_lr_scheduler_factory(
            LRSchedulerFactoryLinear(
                max_epochs=1, epoch_num_steps=10, collection_step_num_env_steps=1
            )
        )
        return BCPolicy(actor=value_net(), optim=optim, action_space=cartpole.action_space)

    policy, other = make(), make()
    for _ in range(2):
        policy.lr_scheduler.step()
    assert policy.optimizers["actor"].param_groups[0]["lr"] == pytest.approx(0.8)
    save_checkpoint(policy, tmp_path / "a.pt")
    load_checkpoint(other, tmp_path / "a.pt")
    other.lr_scheduler.step()
    assert other.optimizers["actor"].param_groups[0]["lr"] == pytest.approx(0.7)


def test_priorities_that_are_not_used_are_said(cartpole, cartpole_buffer):
    policy = BCPolicy(
        actor=(actor := value_net()), optim=adam(actor), action_space=cartpole.action_space
    )
    buffer = PrioritizedReplayBuffer(200, alpha=0.6, beta=0.4)
    for row in cartpole_buffer.sample(0)[0]:
        buffer.add(row)
    with pytest.warns(UserWarning, match="got a PrioritizedReplayBuffer; its priorities"):
        policy.process_buffer(buffer)


def tianshous_cql(model: nn.Module, space: Any) -> Callable[[ReplayBuffer, Any], Any]:
    """Return a function that updates Tianshou's own DiscreteCQL on rows of a buffer."""
    common = {"num_quantiles": 10, "target_update_freq": 100, "min_q_weight": 2.0}
    if LINE >= 2:
        from tianshou.algorithm import DiscreteCQL
        from tianshou.algorithm.modelfree.qrdqn import QRDQNPolicy
        from tianshou.algorithm.optim import AdamOptimizerFactory

        policy = QRDQNPolicy(model=model, action_space=space)
        optim = AdamOptimizerFactory(lr=1e-2)
        theirs: Any = DiscreteCQL(policy=policy, optim=optim, gamma=0.9, **common)
        prepare, learn = theirs._preprocess_batch, theirs._update_with_batch
    else:
        from tianshou.policy import DiscreteCQLPolicy as Theirs

        optim = adam(model)
        theirs = Theirs(model=model, optim=optim, action_space=space, discount_factor=0.9, **common)
        prepare, learn = theirs.process_fn, theirs.learn

    def update(buffer: ReplayBuffer, rows: Any) -> Any:
        theirs.train()
        return learn(prepare(buffer[rows], buffer, rows))

    return update


def test_double_cql_is_tianshous(cartpole, cartpole_buffer):
    """Same weights, same rows: the losses and the weights after 10 steps agree.

    Without a copy to the target in between: ours takes effect one step before Tianshou's, which
    computes the targets before it copies.
    """
    ours = drop_in_cql(cartpole.action_space, is_double=True)
    model = quantile_net()
    model.load_state_dict(ours.model.state_dict())
    update = tianshous_cql(model, cartpole.action_space)
    rng = np.random.default_rng(0)
    for _ in range(10):
        rows = rng.integers(0, len(cartpole_buffer), 16)
        theirs = update(cartpole_buffer, rows)
        mine = ours.learn(ours.process_fn(None, cartpole_buffer, rows)).metrics
        assert mine["loss/td"] == pytest.approx(theirs.qr_loss, rel=1e-4)
        assert mine["loss/min_q"] == pytest.approx(theirs.cql_loss, rel=1e-4)
        assert mine["loss"] == pytest.approx(theirs.loss, rel=1e-4)
    for mine, other in zip(ours.model.parameters(), model.parameters(), strict=True):
        assert torch.allclose(mine, other, atol=1e-4)
