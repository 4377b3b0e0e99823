"""`python -m dforce <verb>`, and so `torchrun -m dforce train`."""

from dforce.cli.main import main

raise SystemExit(main())
