"""`python -m dforce <verb>`, and so `torchrun -m dforce train`."""

from dforce.cli import main

raise SystemExit(main())
