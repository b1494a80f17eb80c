"""``python -m exitlens``, and ``torchrun -m exitlens`` for several processes."""

from exitlens.cli import main

main()
