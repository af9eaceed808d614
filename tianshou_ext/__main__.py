"""``python -m tianshou_ext``: the command ``tianshou-ext``."""

from tianshou_ext.cli import main

main()
