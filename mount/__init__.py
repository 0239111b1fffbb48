"""How a session is mounted: FUSE, processes, the command line. See docs/architecture.md, Processes."""
