"""``python -m exitlens.cli``."""

from exitlens.cli import main

main()
