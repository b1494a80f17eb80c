"""Run, check and show studies: python -m benchmarks STUDY [run|page|check|list] [CELL ...]."""

from benchmarks.harness import main

raise SystemExit(main())
