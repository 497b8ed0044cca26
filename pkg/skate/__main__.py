"""`python -m skate`: the command `skate`."""

from skate.cli import main

raise SystemExit(main())
