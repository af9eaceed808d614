"""Decision Transformer, for continuous and discrete actions.

Chen et al., "Decision Transformer: Reinforcement Learning via Sequence Modeling", NeurIPS 2021,
arXiv 2106.01345; official repository kzl/decision-transformer@e2d82e6, folders gym and atari. A
causal transformer reads the last K steps as (R_t, s_t, a_t), R_t = r_t + r_(t+1) + ... the return
still to come, and says at s_t what the data did:

    continuous:  L = mean((tanh(f_t) - a_t)^2), over real steps and action dimensions
    discrete:    L = mean(-log softmax(f_t)[a_t]), over real steps

To act, ask for a return: R_0 is the target, R_(t+1) = R_t - r_t. Returns are divided by
``rtg_scale``. How it acts, and what a collector needs for that, is in ``in_context.py``.

A step: draw windows, one pass with dropout, clip the gradient, AdamW with a learning rate that
grows linearly over the first ``warmup_steps``. No critic, no bootstrapping, no discount.

Differences from the official code: windows are padded at the end, not at the beginning (with a
causal mask neither is seen); Atari's windows may be padded too; observations are standardised with
std + 1e-3 (there 1e-6); a full context moves on by half (there by one step, ``slide``); keys have
no bias, which would change nothing; of Atari, the cosine decay is left to the user and a context's
time is that of its first step also when acting.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

import torch
from gymnasium.spaces import Discrete
from torch import Tensor
from torch.nn import functional

from tianshou_ext.data.normalize import ObsNormalizer
from tianshou_ext.data.replay import Replay
from tianshou_ext.data.sequences import Sequences, Windows
from tianshou_ext.errors import InputError
from tianshou_ext.nn.transformer import DecisionTransformer, Variant
from tianshou_ext.policy.config import PolicyConfig, make_config
from tianshou_ext.policy.in_context import InContextPolicy
from tianshou_ext.policy.registry import register
from tianshou_ext.tianshou_api import ReplayBuffer


@dataclass(frozen=True, kw_only=True)
class DecisionTransformerConfig(PolicyConfig):
    """Hyperparameters of Decision Transformer; defaults are those of the official gym code."""

    FREE_TO_CHANGE = ("target_return", "slide", "sample_actions")

    hidden_sizes: tuple[int, ...] = ()
    """Widths of fully connected layers before the embedding of an observation."""
    context_len: int = 20
    """Steps K of a context, at least 1 and at most ``max_ep_len``."""
    embed_dim: int = 128
    """Width of the tokens, a multiple of ``num_heads``."""
    num_layers: int = 3
    """Blocks of the transformer, at least 1."""
    num_heads: int = 1
    """Attention heads of a block, at least 1."""
    dropout: float = 0.1
    """Of embeddings, attention and blocks, in [0, 1)."""
    max_ep_len: int = 1000
    """Steps of the longest episode; each has an embedding."""
    rtg_scale: float = 1000.0
    """Returns are divided by it, above 0."""
    target_return: tuple[float, ...] = ()
    """Returns to ask for, the first until ``set_target_return``; none: the best of the data's."""
    slide: int | None = None
    """Steps that a full context drops at once while acting, in [1, ``context_len``]; half of it if
    None. The paper's is 1, and several times slower: see ``nn/contexts.py``."""
    variant: Literal["auto", "gym", "atari"] = "auto"
    """Which of the official networks, see ``nn/transformer.py``; auto: atari for frames."""
    sample_actions: bool = False
    """Draw discrete actions from the softmax in tests too, as the official Atari code does."""
    warmup_steps: int = 10_000
    """Gradient steps over which the learning rate grows, at least 0."""
    weight_decay: float = 1e-4
    """AdamW's, at least 0; of all weights in gym, of matrices only in atari."""
    beta2: float = 0.999
    """AdamW's second coefficient, in [0, 1)."""
    max_grad_norm: float = 0.25
    """Norm to which gradients are clipped, above 0."""

    def __post_init__(self) -> None:
        given = self.target_return
        targets = given if isinstance(given, Sequence) else (given,)
        object.__setattr__(self, "target_return", tuple(float(target) for target in targets))
        super().__post_init__()

    def validate(self) -> None:
        super().validate()
        self.check(self.max_ep_len >= 1, "max_ep_len", "at least 1")
        episode = f"in [1, {self.max_ep_len}], the steps of an episode (max_ep_len)"
        self.check(1 <= self.context_len <= self.max_ep_len, "context_len", episode)
        slides = self.slide is None or 1 <= self.slide <= self.context_len
        self.check(slides, "slide", f"in [1, {self.context_len}] (context_len), or None")
        for name in ("num_layers", "num_heads"):
            self.check(getattr(self, name) >= 1, name, "at least 1")
        for name in ("warmup_steps", "weight_decay"):
            self.check(getattr(self, name) >= 0, name, "at least 0")
        heads = f"a positive multiple of num_heads ({self.num_heads})"
        self.check(self.embed_dim > 0 == self.embed_dim % self.num_heads, "embed_dim", heads)
        self.check(0.0 <= self.dropout < 1.0, "dropout", "in [0, 1)")
        self.check(self.rtg_scale > 0.0, "rtg_scale", "above 0")
        finite = all(map(math.isfinite, self.target_return))
        self.check(finite, "target_return", "of finite numbers")
        self.check(self.variant in ("auto", "gym", "atari"), "variant", "auto, gym or atari")
        self.check(0.0 <= self.beta2 < 1.0, "beta2", "in [0, 1)")
        self.check(self.max_grad_norm > 0.0, "max_grad_norm", "above 0")
        conditions = "none, as returns are what the policy is asked for"
        self.check(self.reward_norm == "none", "reward_norm", conditions)


@register(
    "decision_transformer",
    title="Decision Transformer",
    paper="arXiv 2106.01345",
    actions="both",
    needs=("reward",),
)
class DecisionTransformerPolicy(InContextPolicy):
    """Decision Transformer.

    :param model, optim: the network, with the config's sizes, and an optimizer over all of it.
    :param options: fields of ``DecisionTransformerConfig``.
    :raises InputError: if the network is for other actions or sizes.
    """

    config_class = DecisionTransformerConfig

    def __init__(
        self,
        *,
        model: DecisionTransformer,
        optim: Any,
        action_space: Any,
        observation_space: Any = None,
        config: DecisionTransformerConfig | None = None,
        obs_norm: ObsNormalizer | None = None,
        lr_scheduler: Any = None,
        seed: int = 0,
        action_scaling: bool | None = None,
        action_bound_method: Any = "clip",
        **options: Any,
    ) -> None:
        super().__init__(
            action_space=action_space,
            observation_space=observation_space,
            config=make_config(DecisionTransformerConfig, config, options),
            obs_norm=obs_norm,
            lr_scheduler=lr_scheduler,
            seed=seed,
            action_scaling=action_scaling,
            action_bound_method=action_bound_method,
        )
        self.set_up_acting(model)
        expected = {
            "discrete": self.is_discrete,
            "act_size": action_size(action_space),
            "context_len": self.config.context_len,
            "max_ep_len": self.config.max_ep_len,
        }
        got = {name: getattr(model, name) for name in expected}
        if got != expected:
            raise InputError(f"expected a network of {expected}, got {got}; make it with these")
        self.add_optimizer("model", optim, model)
        self.max_grad_norm = self.config.max_grad_norm
        self._sequences: Sequences | None = None

    @classmethod
    def from_config(
        cls, observation_space: Any, action_space: Any, config: Any, device: Any, seed: int
    ) -> Self:
        shape = observation_space.shape
        own: Variant = "atari" if len(shape) == 3 else "gym"
        model = DecisionTransformer(
            shape,
            action_size(action_space),
            discrete=isinstance(action_space, Discrete),
            context_len=config.context_len,
            width=config.embed_dim,
            num_layers=config.num_layers,
            num_heads=config.num_heads,
            max_ep_len=config.max_ep_len,
            hidden_sizes=config.hidden_sizes,
            variant=own if config.variant == "auto" else config.variant,
        ).to(device)
        optim = torch.optim.AdamW(
            model.parameter_groups(config.weight_decay),
            lr=config.lr,
            betas=(0.9, config.beta2),
            fused=True,
        )
        return cls(
            model=model,
            optim=optim,
            action_space=action_space,
            observation_space=observation_space,
            config=config,
            obs_norm=ObsNormalizer(shape, config.obs_norm).to(device),
            seed=seed,
        )

    # ---- learning -------------------------------------------------------------------------

    def on_fit_start(self, replay: Replay) -> None:
        sequences = Sequences(replay, self.config.context_len)
        if sequences.max_len > self.config.max_ep_len:
            raise InputError(
                f"expected episodes of at most {self.config.max_ep_len} steps, got one of "
                f"{sequences.max_len} in the buffer; mark time-outs if that is not one episode, or "
                f"pass max_ep_len {sequences.max_len}"
            )
        self._sequences, returns = sequences, sequences.returns
        self.data_returns.copy_(torch.tensor([returns.min(), returns.max()]))
        signs = torch.tensor([-1.0, 0.0, 1.0], device=replay.rew.device)
        self.rewards_are_signs.copy_(torch.isin(replay.rew, signs).all())
        for target in self.config.target_return:
            self.check_target(target)

    def sample(self, buffer: ReplayBuffer, sample_size: int | None) -> Windows:
        """Return windows of the buffer; one that has grown is staged anew."""
        replay = self._replay(buffer)
        if self._sequences is None or self._sequences.replay is not replay:
            self._staged = None
            self._replay(buffer)
        assert self._sequences is not None
        return self._sequences.sample(sample_size, self.generators["sample"])

    def prepare(self, batch: Any) -> Any:
        """Return the windows with normalised observations and scaled returns.

        :raises InputError: if the batch is of single steps.
        """
        if not isinstance(batch, Windows):
            raise InputError(
                f"expected windows of steps, got a {type(batch).__name__} of single ones; call "
                "update, or learn with what policy.sample(buffer, batch_size) returns"
            )
        return replace(batch, obs=self.normalize(batch.obs), rtg=batch.rtg / self.config.rtg_scale)

    def gradient_step(self, batch: Any) -> dict[str, Tensor]:
        masks = self.dropout_masks(*batch.mask.shape)
        out = self.model(batch.rtg, batch.obs, batch.act, batch.time, masks)
        if self.is_discrete:
            loss, accuracy = self.cloning_loss(out, batch.act, batch.mask)
            metrics = {"loss": loss, "accuracy": accuracy}
        else:
            loss = self.squared_loss(torch.tanh(out), batch.act, batch.mask)
            metrics = {"loss": loss}
        self.optimize(loss)
        return metrics

    @staticmethod
    def squared_loss(pred: Tensor, act: Tensor, mask: Tensor) -> Tensor:
        """Return the mean squared error over real steps and action dimensions.

        :param pred, act: (B, K, A) in [-1, 1].
        :param mask: (B, K), 1 at real steps.
        """
        return ((pred - act).square().mean(-1) * mask).sum() / mask.sum()

    @staticmethod
    def cloning_loss(logits: Tensor, act: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return the cross-entropy of the data's actions and the share predicted right.

        :param logits, act: (B, K, n), (B, K) int64.
        :param mask: (B, K), 1 at real steps.
        """
        loss = functional.cross_entropy(logits.flatten(0, 1), act.flatten(), reduction="none")
        right = (logits.detach().argmax(-1) == act).float()
        return (loss * mask.flatten()).sum() / mask.sum(), (right * mask).sum() / mask.sum()

    def dropout_masks(self, batch: int, steps: int) -> list[Tensor] | None:
        """Draw dropout for a batch of windows."""
        if self.config.dropout == 0.0:
            return None
        bits = self.random("bits", self.model.num_mask_bits(batch, steps))
        return self.model.dropout_masks(batch, steps, self.config.dropout, bits)

    def lr_share(self) -> float:
        return float(min(1.0, (self.num_updates + 1) / max(1, self.config.warmup_steps)))


def action_size(space: Any) -> int:
    """Return the number of discrete actions, or of dimensions of a continuous one."""
    return int(space.n) if isinstance(space, Discrete) else math.prod(space.shape)
