"""``python -m tastetwin``."""

from tastetwin.cli import main

main()
