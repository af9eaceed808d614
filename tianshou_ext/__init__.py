"""Offline reinforcement learning for Tianshou: logs in, policy out."""

__version__ = "0.1.0"
