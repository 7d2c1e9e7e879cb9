"""Contract tests: every file of a room, found by discovery, keeps what its room promises."""
